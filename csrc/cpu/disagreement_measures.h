// The measures on rows of members in the arithmetic type, loss and gradient in one pass. A stride is the distance from
// one member to the next; a null gradient is not computed.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/disagreement.h"

namespace dadl::cpu {

constexpr int64_t kElements = 2048;  // measured side by side: members far apart are read and written in long runs

template <typename A>
struct Members {
  const A* values;
  int64_t stride, count;

  const A* operator[](int64_t member) const { return values + member * stride; }
  Members from(int64_t element) const { return {values + element, stride, count}; }
};

template <typename A>
struct Gradients {
  A* values;
  int64_t stride;

  explicit operator bool() const { return values; }
  A* operator[](int64_t member) const { return values + member * stride; }
  Gradients from(int64_t element) const { return {values ? values + element : nullptr, stride}; }
};

template <typename A>
struct ClassScratch {
  ClassScratch(int64_t members, int64_t classes)
      : probability(members * classes), mean(classes), mean_log(classes), shift(members) {}

  std::vector<A> probability;     // [K][C]
  std::vector<A> mean, mean_log;  // [C], over members
  std::vector<A> shift;           // [K]; a logit minus this is a log-probability
  std::vector<A> elements;
};

// Sets loss to the l1, mse or variance of `width` elements, at most kElements.
void measure_elements(Measure measure, const Members<float>& x, int64_t width, float* loss,
                      const Gradients<float>& gradient, std::vector<float>& scratch);
void measure_elements(Measure measure, const Members<double>& x, int64_t width, double* loss,
                      const Gradients<double>& gradient, std::vector<double>& scratch);

// symmetric_kl, js or softmax_l1 of one row of classes.
float measure_classes(Measure measure, const Members<float>& x, int64_t classes, const Gradients<float>& gradient,
                      ClassScratch<float>& scratch);
double measure_classes(Measure measure, const Members<double>& x, int64_t classes, const Gradients<double>& gradient,
                       ClassScratch<double>& scratch);

}  // namespace dadl::cpu
