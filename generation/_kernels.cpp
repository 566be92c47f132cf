// Products and attention of a decoding step on a CPU. A step has a few rows and reads every weight
// once: here at the memory's speed or, where that is higher, at the processor's; general products
// of 2 to 8 rows reach a half of it.
//
// Shapes: M rows, I inputs, O outputs, W outputs of a panel; B rows, H heads, G heads that share a
// key-value head, R positions, D width of a head.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

using torch::stable::Tensor;

namespace {

// Floats of a vector, and rows whose sums fit into the processor's registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kTile = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kTile = 4;
#else
constexpr int kLanes = 4, kTile = 8;
#endif
constexpr int kWidth = 2 * kLanes;
// Bytes that are fetched ahead; half and twice as many are as good. Into the second cache: a core
// has few places for what is on its way into the first.
constexpr int kAhead = 8192, kSecondCache = 2;

using Floats = float __attribute__((vector_size(4 * kLanes), aligned(4)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes), aligned(4)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes), aligned(2)));
using Bytes = int8_t __attribute__((vector_size(kLanes), aligned(1)));

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }

inline Floats load(const uint16_t* from) {  // bf16, the upper half of an fp32
  return reinterpret_cast<Floats>(
      __builtin_convertvector(*reinterpret_cast<const Halves*>(from), Ints) << 16);
}

inline Floats load(const int8_t* from) {
  // GCC makes a dozen instructions of what is one.
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))));
#elif defined(__AVX2__)
  return reinterpret_cast<Floats>(_mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)))));
#else
  return __builtin_convertvector(
      __builtin_convertvector(*reinterpret_cast<const Bytes*>(from), Ints), Floats);
#endif
}

// x (I, rows) with one panel (I, W) -> (rows, W). Every output is added up in the order of the
// inputs, however many rows there are: what a row gives does not depend on its neighbours.
template <int rows, typename Weight>
void multiply_tile(const float* x, int64_t inputs, const Weight* panel, float* y) {
  Floats sums[rows][2] = {};
  for (int64_t i = 0; i < inputs; ++i, panel += kWidth, x += rows) {
    const char* ahead = reinterpret_cast<const char*>(panel) + kAhead;
    for (int line = 0; line < int(kWidth * sizeof(Weight)); line += 64)
      __builtin_prefetch(ahead + line, 0, kSecondCache);
    const Floats low = load(panel), high = load(panel + kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      sums[m][0] += low * x[m];
      sums[m][1] += high * x[m];
    }
  }
  std::memcpy(y, sums, sizeof sums);
}

template <typename Weight, int rows = kTile>
void multiply_rows(int some, const float* x, int64_t inputs, const Weight* panel, float* y) {
  if (some == rows) return multiply_tile<rows>(x, inputs, panel, y);
  if constexpr (rows > 1) multiply_rows<Weight, rows - 1>(some, x, inputs, panel, y);
}

template <typename Weight>
void multiply(
    const float* x, int64_t rows, int64_t inputs, const void* weights, const float* scale, float* y,
    int64_t outputs) {
  // Tiles of rows, each (I, rows of it): what a step of the sums needs lies together.
  std::unique_ptr<float[]> tiles(new float[rows * inputs]);
  float* to = tiles.get();
  for (int64_t m = 0; m < rows; m += kTile) {
    const int64_t some = std::min<int64_t>(kTile, rows - m);
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t n = 0; n < some; ++n) *to++ = x[(m + n) * inputs + i];
  }
  const auto work = [&](int64_t begin, int64_t end) {
    float sums[kTile * kWidth];
    for (int64_t p = begin; p < end; ++p) {
      const Weight* panel = static_cast<const Weight*>(weights) + p * inputs * kWidth;
      const int64_t first = p * kWidth, last = std::min(first + kWidth, outputs);
      for (int64_t m = 0; m < rows; m += kTile) {
        const int64_t some = std::min<int64_t>(kTile, rows - m);
        multiply_rows(int(some), tiles.get() + m * inputs, inputs, panel, sums);
        for (int64_t n = 0; n < some; ++n)
          for (int64_t o = first; o < last; ++o)
            y[(m + n) * outputs + o] = sums[n * kWidth + o - first] * (scale ? scale[o] : 1);
      }
    }
  };
  const int64_t panels = (outputs + kWidth - 1) / kWidth;
  // Less is done sooner by one thread than by two that have to meet.
  const int64_t grain = 1 + 65536 / (1 + rows * inputs * kWidth);
  torch::stable::parallel_for(0, panels, grain, work);
}

// x (M, I) fp32, panels (O / W, rounded up, I, W) fp32, bf16 or int8, scale (O,) fp32 -> (M, O).
Tensor linear(
    const Tensor& x, const Tensor& panels, const std::optional<Tensor>& scale, int64_t outputs) {
  const int64_t rows = x.size(0), inputs = x.size(1);
  Tensor y = torch::stable::new_empty(x, {rows, outputs});
  const auto* from = static_cast<const float*>(x.const_data_ptr());
  const auto* by = scale ? static_cast<const float*>(scale->const_data_ptr()) : nullptr;
  auto* to = static_cast<float*>(y.mutable_data_ptr());
  const auto one = panels.element_size() == 4   ? multiply<float>
                   : panels.element_size() == 2 ? multiply<uint16_t>
                                                : multiply<int8_t>;
  one(from, rows, inputs, panels.const_data_ptr(), by, to, outputs);
  return y;
}

int64_t panel_width() { return kWidth; }

// Rows of keys that are fetched ahead: half and twice as many are no better.
constexpr int kRowsAhead = 8;

inline void fetch_row(const float* row, int64_t width) {
  for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(row + d, 0, kSecondCache);
}

float sum_of(Floats lanes) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps(lanes);
#else
  float each[kLanes];
  std::memcpy(each, &lanes, sizeof lanes);
  for (int some = kLanes / 2; some; some /= 2)
    for (int lane = 0; lane < some; ++lane) each[lane] += each[lane + some];
  return each[0];
#endif
}

float dot(const float* a, const float* b, int64_t width) {
  Floats sums[2] = {};
  int64_t d = 0;
  for (; d + kWidth <= width; d += kWidth) {
    sums[0] += load(a + d) * load(b + d);
    sums[1] += load(a + d + kLanes) * load(b + d + kLanes);
  }
  float sum = sum_of(sums[0] + sums[1]);
  for (; d < width; ++d) sum += a[d] * b[d];
  return sum;
}

// Sums of `vectors` neighbouring vectors of rows, weighted by shares.
template <int vectors>
void mix(
    const float* shares, const int64_t* rows, int64_t count, const float* values, float* out) {
  Floats sums[vectors] = {};
  for (int64_t n = 0; n < count; ++n)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sums[v] += shares[n] * load(values + rows[n] + v * kLanes);
  std::memcpy(out, sums, sizeof sums);
}

// query (B, H, D), key and value (B, H / G, R, D), all dense in D, mask (B, R), true where it is
// looked at -> (B, H, D). What is masked is not read, and a row that sees nothing gives zeros.
Tensor attend(
    const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& mask,
    double scaling) {
  const int64_t batch = query.size(0), heads = query.size(1), width = query.size(2);
  const int64_t shared = key.size(1), room = key.size(2), group = heads / shared;
  Tensor out = torch::stable::new_empty(query, {batch, heads, width});
  // Asking a tensor takes longer than a dot product.
  const auto* queries = static_cast<const float*>(query.const_data_ptr());
  const auto* all_keys = static_cast<const float*>(key.const_data_ptr());
  const auto* all_values = static_cast<const float*>(value.const_data_ptr());
  const auto* seen = static_cast<const bool*>(mask.const_data_ptr());
  auto* to = static_cast<float*>(out.mutable_data_ptr());
  const int64_t q0 = query.stride(0), q1 = query.stride(1);
  const int64_t k0 = key.stride(0), k1 = key.stride(1), k2 = key.stride(2);
  const int64_t v0 = value.stride(0), v1 = value.stride(1), v2 = value.stride(2);
  const int64_t m0 = mask.stride(0), m1 = mask.stride(1);
  torch::stable::parallel_for(0, batch * shared, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> places, rows;
    std::vector<float> shares(group * room);
    for (int64_t each = begin; each < end; ++each) {
      const int64_t b = each / shared, kind = each % shared, head = kind * group;
      places.clear();
      rows.clear();
      for (int64_t r = 0; r < room; ++r) {
        if (!seen[b * m0 + r * m1]) continue;
        places.push_back(r);
        rows.push_back(r * v2);
      }
      const int64_t count = places.size();
      const float* asks = queries + b * q0 + head * q1;
      const float* keys = all_keys + b * k0 + kind * k1;
      const float* values = all_values + b * v0 + kind * v1;
      for (int64_t n = 0; n < count; ++n) {
        fetch_row(keys + places[std::min(n + kRowsAhead, count - 1)] * k2, width);
        fetch_row(values + rows[n], width);
        for (int64_t g = 0; g < group; ++g)
          shares[g * room + n] =
              float(scaling) * dot(asks + g * q1, keys + places[n] * k2, width);
      }
      for (int64_t g = 0; g < group; ++g) {
        float* share = shares.data() + g * room;
        const float top = count ? *std::max_element(share, share + count) : 0;
        float total = 0;
        for (int64_t n = 0; n < count; ++n) total += share[n] = std::exp(share[n] - top);
        for (int64_t n = 0; n < count; ++n) share[n] /= total;
        float* sums = to + (b * heads + head + g) * width;
        int64_t d = 0;
        for (; d + 8 * kLanes <= width; d += 8 * kLanes)
          mix<8>(share, rows.data(), count, values + d, sums + d);
        for (; d + kLanes <= width; d += kLanes)
          mix<1>(share, rows.data(), count, values + d, sums + d);
        for (; d < width; ++d) {
          sums[d] = 0;
          for (int64_t n = 0; n < count; ++n) sums[d] += share[n] * values[rows[n] + d];
        }
      }
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(vqrae, library) {
  library.def("linear(Tensor x, Tensor panels, Tensor? scale, int outputs) -> Tensor");
  library.def(
      "attend(Tensor query, Tensor key, Tensor value, Tensor mask, float scaling) -> Tensor");
  library.def("panel_width() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(vqrae, CPU, library) {
  library.impl("linear", TORCH_BOX(&linear));
  library.impl("attend", TORCH_BOX(&attend));
}

STABLE_TORCH_LIBRARY_IMPL(vqrae, CompositeExplicitAutograd, library) {
  library.impl("panel_width", TORCH_BOX(&panel_width));
}
