// The measures on rows of members, on the CPU.
#include "disagreement_measures.h"

#include <cstdint>
#include <vector>

#include "common.h"
#include "disagreement_rows.h"

namespace dadl::cpu {

// target_clones does not work on templates, so each type has its own functions.
#define DADL_MEASURES(A)                                                                                             \
  DADL_CLONES void measure_elements(Measure measure, const Members<A>& x, int64_t width, A* loss,                    \
                                    const Gradients<A>& gradient, std::vector<A>& scratch) {                         \
    elements_of_members(measure, x, width, loss, gradient, A{1}, scratch);                                           \
  }                                                                                                                  \
  DADL_CLONES A measure_classes(Measure measure, const Members<A>& x, int64_t classes, const Gradients<A>& gradient, \
                                ClassScratch<A>& scratch) {                                                          \
    return classes_of_row(measure, x, classes, gradient, scratch);                                                   \
  }
DADL_MEASURES(float)
DADL_MEASURES(double)
#undef DADL_MEASURES

}  // namespace dadl::cpu
