// Label order and label distance, in the labels' own dtype: their ties decide ranks.
#pragma once

#include <math.h>

#include <cstdint>

#include "half.h"
#include "macros.h"
#include "order.h"

namespace dadl {

// Distances compare with < and ==; an int64 distance is exact because it is unsigned.
DADL_HD uint64_t label_distance(int64_t a, int64_t b) {
  return a > b ? static_cast<uint64_t>(a) - static_cast<uint64_t>(b)
               : static_cast<uint64_t>(b) - static_cast<uint64_t>(a);
}
DADL_HD double label_distance(double a, double b) { return fabs(a - b); }
DADL_HD float label_distance(float a, float b) { return fabsf(a - b); }
DADL_HD float label_distance(Half a, Half b) { return fabsf(to_float(to_half(to_float(a) - to_float(b)))); }
DADL_HD float label_distance(BFloat16 a, BFloat16 b) { return fabsf(to_float(to_bfloat16(to_float(a) - to_float(b)))); }

DADL_HD uint64_t label_key(int64_t label) { return ordered_key(label); }
DADL_HD uint64_t label_key(double label) { return ordered_key(label); }
DADL_HD uint64_t label_key(float label) { return ordered_key(label); }
DADL_HD uint64_t label_key(Half label) { return ordered_key(to_float(label)); }
DADL_HD uint64_t label_key(BFloat16 label) { return ordered_key(to_float(label)); }

// NaN or infinite: such labels have no defined distances, so the loss shows NaN.
DADL_HD bool label_is_finite(int64_t) { return true; }
DADL_HD bool label_is_finite(double label) { return label - label == 0.0; }
DADL_HD bool label_is_finite(float label) { return label - label == 0.0f; }
DADL_HD bool label_is_finite(Half label) { return label_is_finite(to_float(label)); }
DADL_HD bool label_is_finite(BFloat16 label) { return label_is_finite(to_float(label)); }

}  // namespace dadl
