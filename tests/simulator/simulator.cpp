// The CUDA kernels on the host, for NumPy arrays. fp16 and bf16 are uint16 arrays; a dtype's name says which.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../../csrc/cuda/contrast_kernels.cuh"
#include "../../csrc/cuda/dropout_kernels.cuh"
#include "../../csrc/cuda/rank_n_contrast_kernels.cuh"
#include "../../csrc/cuda/ranksim_kernels.cuh"

namespace dadl::sim {
namespace {

namespace py = pybind11;
using Array = py::array;

// In what order threads and blocks run, and how many elements each input begins behind a multiple of 256 bytes.
struct Schedule {
  Order order;
  size_t offset;
};

// Results in the kernels' memory, and where they go.
struct Result {
  Array array;
  const unsigned char* values;
};

size_t input_offset = 0;
std::vector<Result> results;

// Begins with the kernels' memory empty, and ends with the results in their arrays.
class Backend {
 public:
  template <typename T>
  class Buffer {
   public:
    explicit Buffer(int64_t size) : values_(reinterpret_cast<T*>(memory.allocate(size * sizeof(T), "a buffer"))) {}
    T* data() const { return values_; }

   private:
    T* values_;
  };

  explicit Backend(const Schedule& schedule, int64_t multiprocessors = 1, bool split_products = false)
      : order_(schedule.order), multiprocessors_(multiprocessors), split_products_(split_products) {
    memory.release(0);
    input_offset = schedule.offset;
  }
  ~Backend() {
    for (Result& result : results) std::memcpy(result.array.mutable_data(), result.values, result.array.nbytes());
    results.clear();
  }
  Backend(const Backend&) = delete;

  int64_t multiprocessors() const { return multiprocessors_; }

  bool has_warp_group_products() const { return false; }

  bool prefers_split_products() const { return split_products_; }

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    sim::launch(order_, 0, kernel, grid, block, arguments...);
  }

  template <typename... Parameters, typename... Arguments>
  void launch_with(size_t bytes, void (*kernel)(Parameters...), dim3 grid, dim3 block, Arguments... arguments) {
    sim::launch(order_, bytes, kernel, grid, block, arguments...);
  }

  template <typename... Parameters>
  int64_t resident_blocks(void (*)(Parameters...), int, size_t) const {
    return 2 * multiprocessors_;
  }

  // Until the operator ends: the caching allocator may give the memory of a buffer to the next one, but need not.
  template <typename T>
  Buffer<T> buffer(int64_t size) {
    return Buffer<T>(size);
  }

  template <typename T>
  void zero(T* values, int64_t size) {
    std::fill_n(reinterpret_cast<unsigned char*>(values), size * sizeof(T), 0);
  }

  template <typename Signed>
  Buffer<int64_t> sort(const Buffer<Signed>& buffer, int64_t rows, int64_t n) {
    const Signed* keys = buffer.data();
    Buffer<int64_t> elements(rows * n);
    for (int64_t row = 0; row < rows; ++row) {
      int64_t* first = elements.data() + row * n;
      std::iota(first, first + n, int64_t{0});
      std::stable_sort(first, first + n, [&](int64_t a, int64_t b) { return keys[row * n + a] < keys[row * n + b]; });
    }
    return elements;
  }

  template <typename T, typename A>
  void multiply(const Matrix<T>& a, const Matrix<T>& b, A* out, int64_t out_stride, bool accumulate, A factor = 1) {
    if (a.columns != b.rows) throw std::logic_error("sizes");
    const auto at = [](const Matrix<T>& m, int64_t i, int64_t j) {
      return static_cast<A>(to_float(m.values[i * m.row_stride + j * m.column_stride]));
    };
    for (int64_t i = 0; i < a.rows; ++i) {
      for (int64_t j = 0; j < b.columns; ++j) {
        A sum = 0;
        for (int64_t c = 0; c < a.columns; ++c) sum += at(a, i, c) * at(b, c, j);
        A& element = out[i * out_stride + j];
        element = (accumulate ? element : A{0}) + factor * sum;
      }
    }
  }

 private:
  Order order_;
  int64_t multiprocessors_;
  bool split_products_;
};

// Calls body(T{}) with the storage type of a dtype's name.
template <typename Body>
void dispatch_floating(const std::string& dtype, Body body) {
  if (dtype == "float32") return body(float{});
  if (dtype == "float64") return body(double{});
  if (dtype == "float16") return body(Half{});
  if (dtype == "bfloat16") return body(BFloat16{});
  throw std::invalid_argument("unknown dtype " + dtype);
}

template <typename Body>
void dispatch_labels(const std::string& dtype, Body body) {
  if (dtype == "int64") return body(int64_t{});
  dispatch_floating(dtype, body);
}

// A copy for the kernels.
template <typename T>
const T* data(const Array& array) {
  if (array.itemsize() != sizeof(T) || !(array.flags() & Array::c_style)) {
    throw std::invalid_argument("an array is not contiguous or of another dtype");
  }
  unsigned char* values = memory.allocate(array.nbytes(), "an input", input_offset * sizeof(T));
  std::memcpy(values, array.data(), array.nbytes());
  return reinterpret_cast<const T*>(values);
}

// NumPy's dtype of a storage type.
template <typename T>
struct Numpy {
  using Type = T;
};
template <>
struct Numpy<Half> {
  using Type = uint16_t;
};
template <>
struct Numpy<BFloat16> {
  using Type = uint16_t;
};

template <typename T>
Array empty(const std::vector<py::ssize_t>& shape) {
  return py::array_t<typename Numpy<T>::Type>(shape);
}

// What the kernels write, for an array. They get NaN bytes, so that what they leave out shows.
template <typename T>
T* mutable_data(Array& array) {
  unsigned char* values = memory.allocate(array.nbytes(), "a result");
  results.push_back({array, values});
  return reinterpret_cast<T*>(values);
}

RankLimits limits(int64_t warp, int64_t block, int64_t sort_elements) { return {warp, block, sort_elements}; }

// input [rows, n]
Array rank(const Array& input, const std::string& dtype, const RankLimits& limits, const Schedule& schedule) {
  const py::ssize_t rows = input.shape(0), n = input.shape(1);
  Backend backend(schedule);
  Array output;
  dispatch_floating(dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    output = empty<A>({rows, n});
    launch_ranks(backend, Rank<T>{data<T>(input), mutable_data<A>(output), static_cast<int>(n)}, rows, n, limits);
  });
  return output;
}

Array rank_backward(const Array& grad, const Array& input, const Array& ranks, const std::string& dtype,
                    double interp_strength, const RankLimits& limits, const Schedule& schedule) {
  const py::ssize_t rows = input.shape(0), n = input.shape(1);
  Backend backend(schedule);
  Array output;
  dispatch_floating(dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    output = empty<T>({rows, n});
    const RankBackward<T> op{data<A>(grad),
                             data<T>(input),
                             data<A>(ranks),
                             mutable_data<T>(output),
                             static_cast<int>(n),
                             static_cast<A>(interp_strength),
                             static_cast<A>(interp_strength + 1e-8)};
    launch_ranks(backend, op, rows, n, limits);
  });
  return output;
}

// labels [n, k]
std::tuple<Array, Array, Array> ranksim_subset(const Array& labels, const std::string& dtype, const Array& priority,
                                               const Schedule& schedule) {
  const py::ssize_t n = labels.shape(0), k = labels.shape(1);
  Backend backend(schedule);
  Array index = empty<int64_t>({n}), order = empty<int64_t>({n}), count = empty<int64_t>({1});
  dispatch_labels(dtype, [&](auto tag) {
    using Label = decltype(tag);
    ranksim_select(backend, data<Label>(labels), data<double>(priority), n, k, mutable_data<int64_t>(index),
                   mutable_data<int64_t>(order), mutable_data<int64_t>(count));
  });
  return {index, order, count};
}

// features [n, d]; index [n], order [n] and count [] of their subset; labels [n], or a matrix of float32 or float64
struct Batch {
  Array features;
  std::string dtype;
  Array index, order, count, labels;
  std::string label_dtype;
  bool labels_are_matrix;
};

Batch batch(const Array& features, const std::string& dtype, const Array& index, const Array& order, const Array& count,
            const Array& labels, const std::string& label_dtype, bool labels_are_matrix) {
  return {features, dtype, index, order, count, labels, label_dtype, labels_are_matrix};
}

// The fused operators' loss [], rows [n] and, with a row weight [n] or null, gradient [n, d].
py::dict ranksim(const Batch& batch, const RankSimSettings& settings, const py::object& row_weight, bool with_gradient,
                 const RankLimits& limits, const Schedule& schedule) {
  const py::ssize_t n = batch.features.shape(0), d = batch.features.shape(1);
  Backend backend(schedule);
  py::dict result;
  dispatch_floating(batch.dtype, [&](auto tag) {
    using F = decltype(tag);
    using T = typename Storage<F>::Arithmetic;
    RankSim<F, Backend> ranksim(backend, data<F>(batch.features), data<int64_t>(batch.index),
                                data<int64_t>(batch.order), data<int64_t>(batch.count), n, d, settings, limits);
    if (batch.labels_are_matrix && batch.label_dtype == "float32") {
      ranksim.matrix_ranks(data<float>(batch.labels), batch.labels.shape(0));
    } else if (batch.labels_are_matrix) {
      ranksim.matrix_ranks(data<double>(batch.labels), batch.labels.shape(0));
    } else {
      dispatch_labels(batch.label_dtype, [&](auto label) { ranksim.label_ranks(data<decltype(label)>(batch.labels)); });
    }
    ranksim.rank_rows(with_gradient);
    Array loss = empty<T>({1}), rows = empty<T>({n});
    ranksim.loss(mutable_data<T>(loss));
    ranksim.rows(mutable_data<T>(rows));
    result["loss"] = loss;
    result["rows"] = rows;
    if (!with_gradient) return;
    if (row_weight.is_none()) {
      Array gradient = empty<T>({n, d});
      ranksim.gradient(static_cast<const T*>(nullptr), mutable_data<T>(gradient));
      result["gradient"] = gradient;
    } else {
      Array gradient = empty<F>({n, d});
      ranksim.gradient(data<T>(row_weight.cast<Array>()), mutable_data<F>(gradient));
      result["gradient"] = gradient;
    }
  });
  return result;
}

template <typename T>
const T* optional_data(const py::object& array) {
  return array.is_none() ? nullptr : data<T>(array.cast<Array>());
}

RankNContrastSettings rank_n_contrast_settings(double temperature, int64_t similarity, int64_t label_distance) {
  return {temperature, static_cast<Similarity>(similarity), static_cast<LabelDistance>(label_distance)};
}

// The loss [], rows [n] and, with a row weight [n] or None, gradient [n, d]. labels [n] or [n, k]
py::dict rank_n_contrast(const Array& features, const std::string& dtype, const Array& labels,
                         const std::string& label_dtype, const RankNContrastSettings& settings, double share,
                         const py::object& row_weight, bool with_gradient, const Schedule& schedule) {
  const py::ssize_t n = features.shape(0), d = features.shape(1), k = labels.ndim() == 2 ? labels.shape(1) : 0;
  Backend backend(schedule);
  py::dict result;
  dispatch_floating(dtype, [&](auto tag) {
    using F = decltype(tag);
    using T = typename Storage<F>::Arithmetic;
    RankNContrast<F, Backend> contrast(backend, data<F>(features), n, d, settings);
    dispatch_labels(label_dtype,
                    [&](auto label) { contrast.anchors(data<decltype(label)>(labels), k, share, with_gradient); });
    Array loss = empty<T>({1}), rows = empty<T>({n});
    contrast.loss(share, mutable_data<T>(loss));
    contrast.rows(mutable_data<T>(rows));
    result["loss"] = loss;
    result["rows"] = rows;
    if (!with_gradient) return;
    Array gradient = row_weight.is_none() ? empty<T>({n, d}) : empty<F>({n, d});
    if (row_weight.is_none()) {
      contrast.gradient(static_cast<const T*>(nullptr), mutable_data<T>(gradient));
    } else {
      contrast.gradient(optional_data<T>(row_weight), mutable_data<F>(gradient));
    }
    result["gradient"] = gradient;
  });
  return result;
}

// body(query, key, A{}) with Rows: query [B, d], key [N, d] or [C, D, d], in float32 where their dtypes differ.
template <typename Body>
void with_rows(const Array& query, const std::string& query_dtype, const Array& key, const std::string& key_dtype,
               Body body) {
  const py::ssize_t d = query.shape(1), count = key.ndim() == 3 ? key.shape(0) * key.shape(1) : key.shape(0);
  dispatch_floating(key_dtype, [&](auto tag) {
    using K = decltype(tag);
    using A = typename Storage<K>::Arithmetic;
    if (query_dtype == key_dtype) {
      return body(Rows<K>(data<K>(query), query.shape(0), d), Rows<K>(data<K>(key), count, d), A{});
    }
    std::vector<A> wide(static_cast<size_t>(count * d));
    const K* narrow = data<K>(key);
    std::transform(narrow, narrow + count * d, wide.begin(), [](K value) { return to_float(value); });
    body(Rows<A>(data<A>(query), query.shape(0), d), Rows<A>(wide.data(), count, d), A{});
  });
}

// The log-sum-exp [B] and slope [B, d]; with own keys [B, d] in the arithmetic type, targets [B] and a queue
// [C, D, d], the losses of group contrast. mask [N] and slot_count [C] may be None.
std::tuple<Array, Array> contrast_values(const Array& query, const std::string& query_dtype, const Array& key,
                                         const std::string& key_dtype, const py::object& mask, bool exclude_self,
                                         const py::object& own, const py::object& target, const py::object& slot_count,
                                         bool kl, int64_t ignore_index, bool mean, double scale, bool with_slope,
                                         int64_t multiprocessors, bool split_products, const Schedule& schedule) {
  Backend backend(schedule, multiprocessors, split_products);
  Array values, slope;
  KeyChoice choice;
  choice.mask = optional_data<bool>(mask);
  choice.exclude_self = exclude_self;
  choice.target = optional_data<int64_t>(target);
  choice.slot_count = optional_data<int64_t>(slot_count);
  choice.kl = kl;
  choice.mean = mean;
  choice.ignore_index = ignore_index;
  if (key.ndim() == 3) {
    choice.classes = static_cast<int>(key.shape(0));
    choice.slots = static_cast<int>(key.shape(1));
  }
  with_rows(query, query_dtype, key, key_dtype, [&](const auto& queries, const auto& keys, auto tag) {
    using A = decltype(tag);
    values = empty<A>({query.shape(0)});
    slope = empty<A>({with_slope ? query.shape(0) : 0, query.shape(1)});
    contrast(backend, queries, keys, choice, optional_data<A>(own), scale, mutable_data<A>(values),
             with_slope ? mutable_data<A>(slope) : nullptr);
  });
  return {values, slope};
}

Array contrast_keys(const Array& grad, const Array& query, const Array& key, const std::string& dtype,
                    const py::object& mask, const Array& lse, double scale, bool exclude_self, int64_t multiprocessors,
                    bool split_products, const Schedule& schedule) {
  Backend backend(schedule, multiprocessors, split_products);
  Array gradient;
  KeyChoice choice;
  choice.mask = optional_data<bool>(mask);
  choice.exclude_self = exclude_self;
  dispatch_floating(dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    gradient = empty<T>({key.shape(0), key.shape(1)});
    contrast_key_gradient(backend, Rows<T>(data<T>(query), query.shape(0), query.shape(1)),
                          Rows<T>(data<T>(key), key.shape(0), key.shape(1)), choice, data<A>(grad), data<A>(lse), scale,
                          mutable_data<T>(gradient));
  });
  return gradient;
}

// predictions [K, B, R, C] -> rows [B] and gradient [K, B, R, C]
std::tuple<Array, Array> disagree(const Array& predictions, const std::string& dtype, int64_t measure, bool mean,
                                  bool with_gradient, const Schedule& schedule) {
  Backend backend(schedule);
  const py::ssize_t members = predictions.shape(0), batch = predictions.shape(1), rows = predictions.shape(2),
                    classes = predictions.shape(3);
  Array loss, gradient;
  dispatch_floating(dtype, [&](auto tag) {
    using T = decltype(tag);
    using A = typename Storage<T>::Arithmetic;
    loss = empty<A>({batch});
    gradient = empty<A>({with_gradient ? members : 0, batch, rows, classes});
    disagreement(backend, Disagreement<T>{static_cast<Measure>(measure), data<T>(predictions), members, batch, rows,
                                          classes, mean ? 1 / static_cast<A>(std::max<int64_t>(batch, 1)) : A{1},
                                          mutable_data<A>(loss), with_gradient ? mutable_data<A>(gradient) : nullptr});
  });
  return {loss, gradient};
}

// Features [B, F], weight [C, F] and bias [C] or None, of one dtype; seed [1].
struct Dropouts {
  Array features, weight;
  py::object bias;
  std::string dtype;
  Array seed;
  uint32_t threshold;
  int64_t samples;
  int64_t tile_elements, multiprocessors;

  // body(DropoutLinear<T>, A{})
  template <typename Body>
  void with_linear(Body body) const {
    dispatch_floating(dtype, [&](auto tag) {
      using T = decltype(tag);
      using A = typename Storage<T>::Arithmetic;
      const DropoutLinear<T> linear{data<T>(features),   data<T>(weight), optional_data<T>(bias),
                                    data<int64_t>(seed), threshold,       features.shape(0),
                                    features.shape(1),   weight.shape(0), samples};
      body(linear, A{});
    });
  }
};

Dropouts dropouts(const Array& features, const Array& weight, const py::object& bias, const std::string& dtype,
                  const Array& seed, uint32_t threshold, int64_t samples, int64_t tile_elements,
                  int64_t multiprocessors) {
  return {features, weight, bias, dtype, seed, threshold, samples, tile_elements, multiprocessors};
}

// [K, B, C], in the arithmetic type for many outputs
Array dropout_linear(const Dropouts& task, const Schedule& schedule) {
  Backend backend(schedule, task.multiprocessors);
  Array result;
  task.with_linear([&](const auto& linear, auto tag) {
    using A = decltype(tag);
    using T = std::remove_const_t<std::remove_pointer_t<decltype(linear.features)>>;
    const std::vector<py::ssize_t> shape{linear.members, linear.rows, linear.outputs};
    if (linear.outputs <= kFewOutputs) {
      result = empty<T>(shape);
      dropout_predict(backend, linear, nullptr, mutable_data<T>(result));
    } else {
      result = empty<A>(shape);
      dropout_multiply(backend, linear, mutable_data<A>(result), task.tile_elements);
    }
  });
  return result;
}

// The gradients [B, F] and [C, F] for the upstream gradient [K, B, C] in the arithmetic type, no rows where not wanted.
std::tuple<Array, Array> dropout_linear_backward(const Dropouts& task, const Array& grad, bool for_features,
                                                 bool for_weight, const Schedule& schedule) {
  Backend backend(schedule, task.multiprocessors);
  Array features_gradient, weight_gradient;
  task.with_linear([&](const auto& linear, auto tag) {
    using A = decltype(tag);
    using T = std::remove_const_t<std::remove_pointer_t<decltype(linear.features)>>;
    const auto run = [&](auto out, auto gradients) {
      using Out = decltype(out);
      features_gradient = empty<Out>({for_features ? linear.rows : 0, linear.width});
      weight_gradient = empty<Out>({for_weight ? linear.outputs : 0, linear.width});
      gradients(for_features ? mutable_data<Out>(features_gradient) : nullptr,
                for_weight ? mutable_data<Out>(weight_gradient) : nullptr);
    };
    if (linear.outputs <= kFewOutputs) {
      run(T{}, [&](T* to_features, T* to_weight) {
        dropout_gradients<false>(backend, linear, nullptr, data<A>(grad), A{1}, to_features, to_weight,
                                 static_cast<A*>(nullptr));
      });
    } else {
      std::vector<T> upstream(static_cast<size_t>(grad.size()));
      const A* wide = data<A>(grad);
      std::transform(wide, wide + grad.size(), upstream.begin(), Storage<T>::round);
      run(A{}, [&](A* to_features, A* to_weight) {
        dropout_multiply_back(backend, linear, static_cast<const T*>(upstream.data()), to_features, to_weight,
                              task.tile_elements);
      });
    }
  });
  return {features_gradient, weight_gradient};
}

// The row losses and the gradients of features, weight and bias.
std::tuple<Array, Array, Array, Array> dropout_disagree(const Dropouts& task, int64_t measure, bool mean, bool minimax,
                                                        bool with_gradient, const Schedule& schedule) {
  Backend backend(schedule, task.multiprocessors);
  Array loss, features_gradient, weight_gradient, bias_gradient;
  task.with_linear([&](const auto& linear, auto tag) {
    using A = decltype(tag);
    loss = empty<A>({linear.rows});
    features_gradient = empty<A>({with_gradient ? linear.rows : 0, linear.width});
    weight_gradient = empty<A>({with_gradient ? linear.outputs : 0, linear.width});
    bias_gradient = empty<A>({with_gradient ? linear.outputs : 0});
    dropout_disagreement(backend, linear, static_cast<Measure>(measure),
                         mean ? 1 / static_cast<A>(std::max<int64_t>(linear.rows, 1)) : A{1}, minimax ? A{-1} : A{1},
                         mutable_data<A>(loss), with_gradient ? mutable_data<A>(features_gradient) : nullptr,
                         with_gradient ? mutable_data<A>(weight_gradient) : nullptr,
                         with_gradient ? mutable_data<A>(bias_gradient) : nullptr);
  });
  return {loss, features_gradient, weight_gradient, bias_gradient};
}

// ---- kernels that are wrong on purpose ----

// What reverses the values within a block: nothing between writing the copy and reading it, a vote or a barrier.
enum class Fence { kNone, kVote, kWarp, kBlock };

template <int kSize>
void reverse_block_kernel(float* values, Fence fence) {
  DADL_SHARED(copy, float[kSize]);
  copy[threadIdx.x] = values[threadIdx.x];
  if (fence == Fence::kVote) __any_sync(kFullWarp, 1);
  if (fence == Fence::kWarp) __syncwarp();
  if (fence == Fence::kBlock) __syncthreads();
  values[threadIdx.x] = copy[kSize - 1 - threadIdx.x];
}

// values [32] or [64]
Array reverse_block(const Array& values, Fence fence, const Schedule& schedule) {
  Backend backend(schedule);
  Array result = values.attr("copy")();
  auto* copy = mutable_data<float>(result);
  std::memcpy(copy, values.data(), values.nbytes());
  const dim3 threads(static_cast<unsigned>(values.size()));
  backend.launch(values.size() == 32 ? reverse_block_kernel<32> : reverse_block_kernel<64>, dim3(1), threads, copy,
                 fence);
  return result;
}

// One lane of each warp reads what the other warp writes, and nothing but a vote of its own warp lies before.
void read_other_warp_kernel(float* values) {
  DADL_SHARED(copy, float[64]);
  copy[threadIdx.x] = values[threadIdx.x];
  __any_sync(kFullWarp, 1);
  if (threadIdx.x % kLanes == 15) values[threadIdx.x] = copy[(threadIdx.x + kLanes) % 64];
}

// values [64]
Array read_other_warp(const Array& values, const Schedule& schedule) {
  Backend backend(schedule);
  Array result = values.attr("copy")();
  auto* copy = mutable_data<float>(result);
  std::memcpy(copy, values.data(), values.nbytes());
  backend.launch(read_other_warp_kernel, dim3(1), dim3(64), copy);
  return result;
}

// Blocks leave their numbers in one place, or each in its own; or they read what another one writes.
void block_number_kernel(int* values, bool shared_place, bool read_others) {
  if (threadIdx.x != 0) return;
  const unsigned next = (blockIdx.x + 1) % gridDim.x;
  const int other = read_others ? values[next] : 0;
  values[shared_place ? 0 : blockIdx.x] = other == 1000 ? other : static_cast<int>(blockIdx.x);
}

void block_numbers(bool shared_place, bool read_others, const Schedule& schedule) {
  Backend backend(schedule);
  const auto values = backend.buffer<int>(3);
  backend.zero(values.data(), 3);
  backend.launch(block_number_kernel, dim3(3), dim3(32), values.data(), shared_place, read_others);
}

void flag_kernel(int* flag, bool atomic) {
  if (atomic) {
    atomicOr(flag, 1);
  } else {
    *flag |= 1;
  }
}

// All threads of two blocks.
void set_flag(bool atomic, const Schedule& schedule) {
  Backend backend(schedule);
  const auto flag = backend.buffer<int>(1);
  backend.zero(flag.data(), 1);
  backend.launch(flag_kernel, dim3(2), dim3(64), flag.data(), atomic);
}

void divergent_kernel(int mistake) {
  if (mistake == 2) {
    if (threadIdx.x < 7) {
      __syncthreads();
    } else {
      __syncthreads();
    }
    return;
  }
  if (threadIdx.x < 7) return;
  if (mistake == 1 && threadIdx.x == 8) __syncwarp();
  __any_sync(kFullWarp, 1);
}

void divergent(int mistake, const Schedule& schedule) {
  Backend(schedule).launch(divergent_kernel, dim3(1), dim3(32), mistake);
}

// Of shared memory, or of a buffer of 32.
void overrun_kernel(int* buffer, int reach) {
  DADL_SHARED(values, int[32]);
  (buffer ? buffer : values)[static_cast<int>(threadIdx.x) + reach] = 0;
}

void overrun(bool shared, int reach, const Schedule& schedule) {
  Backend backend(schedule);
  const auto buffer = backend.buffer<int>(32);
  backend.launch(overrun_kernel, dim3(1), dim3(32), shared ? nullptr : buffer.data(), reach);
}

template <int kBytes>
void large_kernel() {
  DADL_SHARED(large, char[kBytes]);
  large[threadIdx.x] = 0;
}

// Where range `split` leaves its result for a row, in arrays that a test cannot allocate.
int64_t place_of_partial(int splits, int rows, int split, int row) {
  return Partials<float>{splits, rows, 1, nullptr, nullptr, nullptr}.at(split, row);
}

void beyond_limits(unsigned grid_y, unsigned threads, bool large, const Schedule& schedule) {
  Backend(schedule).launch(large ? large_kernel<(48 << 10) + 1> : large_kernel<48 << 10>, dim3(1, grid_y), threads);
}

}  // namespace
}  // namespace dadl::sim

PYBIND11_MODULE(dadl_simulator, m) {
  namespace py = pybind11;
  using namespace dadl::sim;
  py::enum_<Order>(m, "Order")
      .value("FORWARD", Order::kForward)
      .value("REVERSE", Order::kReverse)
      .value("AHEAD", Order::kAhead)
      .value("RANDOM", Order::kRandom);
  py::class_<Schedule>(m, "Schedule").def(py::init<Order, size_t>());
  py::enum_<Fence>(m, "Fence")
      .value("NONE", Fence::kNone)
      .value("VOTE", Fence::kVote)
      .value("WARP", Fence::kWarp)
      .value("BLOCK", Fence::kBlock);
  py::class_<dadl::RankLimits>(m, "RankLimits")
      .def(py::init(&limits), py::arg("warp"), py::arg("block"), py::arg("sort_elements"));
  m.def("rank", &rank);
  m.def("rank_backward", &rank_backward);
  m.def("select", &ranksim_subset);
  py::class_<Batch>(m, "Batch")
      .def(py::init(&batch), py::arg("features"), py::arg("dtype"), py::arg("index"), py::arg("order"),
           py::arg("count"), py::arg("labels"), py::arg("label_dtype"), py::arg("labels_are_matrix"));
  py::class_<dadl::RankSimSettings>(m, "RankSimSettings")
      .def(py::init<double, double, bool>(), py::arg("interp_strength"), py::arg("weight"), py::arg("mean"));
  m.def("ranksim", &ranksim);
  py::class_<dadl::RankNContrastSettings>(m, "RankNContrastSettings")
      .def(py::init(&rank_n_contrast_settings), py::arg("temperature"), py::arg("similarity"),
           py::arg("label_distance"));
  m.def("rank_n_contrast", &rank_n_contrast);
  m.def("contrast", &contrast_values);
  m.def("contrast_key_gradient", &contrast_keys);
  py::class_<Dropouts>(m, "Dropouts").def(py::init(&dropouts));
  m.def("place_of_partial", &place_of_partial);
  m.def("disagreement", &disagree);
  m.def("dropout_linear", &dropout_linear);
  m.def("dropout_linear_backward", &dropout_linear_backward);
  m.def("dropout_disagreement", &dropout_disagree);
  m.def("reverse_block", &reverse_block);
  m.def("read_other_warp", &read_other_warp);
  m.def("block_numbers", &block_numbers);
  m.def("set_flag", &set_flag);
  m.def("divergent", &divergent);
  m.def("overrun", &overrun);
  m.def("beyond_limits", &beyond_limits);
}
