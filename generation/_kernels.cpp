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
#include <utility>
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
// Bytes that are fetched ahead, as what is read once: all else that a step needs stays in the
// caches. What lies farther ahead the processor fetches by itself.
constexpr int kAhead = 4096, kOnce = 0;
// Where rows of the key-value cache are fetched to.
constexpr int kSecondCache = 2;

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
      __builtin_prefetch(ahead + line, 0, kOnce);
    const Floats low = load(panel), high = load(panel + kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      sums[m][0] += low * x[m];
      sums[m][1] += high * x[m];
    }
  }
  std::memcpy(y, sums, sizeof sums);
}

// `work` with a number of rows that is known when this is compiled.
template <int rows = kTile, typename Work>
inline void with_rows(int64_t some, const Work& work) {
  if (some == rows) return work(std::integral_constant<int, rows>());
  if constexpr (rows > 1) with_rows<rows - 1>(some, work);
}

template <typename Weight>
void multiply(
    const float* x, int64_t rows, int64_t inputs, const void* weights, const float* scale, float* y,
    int64_t outputs) {
  // Tiles of rows, each (I, rows of it): what a step of the sums needs lies together.
  std::unique_ptr<float[]> tiles(new float[rows * inputs]);
  for (int64_t m = 0; m < rows; m += kTile)
    with_rows(std::min<int64_t>(kTile, rows - m), [&](auto some) {
      const float* from = x + m * inputs;
      float* to = tiles.get() + m * inputs;
      for (int64_t i = 0; i < inputs; ++i)
#pragma GCC unroll 8
        for (int n = 0; n < some; ++n) *to++ = from[n * inputs + i];
    });
  const auto work = [&](int64_t begin, int64_t end) {
    float sums[kTile * kWidth];
    for (int64_t p = begin; p < end; ++p) {
      const Weight* panel = static_cast<const Weight*>(weights) + p * inputs * kWidth;
      const int64_t first = p * kWidth, last = std::min(first + kWidth, outputs);
      for (int64_t m = 0; m < rows; m += kTile) {
        const int64_t some = std::min<int64_t>(kTile, rows - m);
        with_rows(some, [&](auto n) {
          multiply_tile<n>(tiles.get() + m * inputs, inputs, panel, sums);
        });
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

// Lanes 0, 2, 4, ... (or 1, 3, 5, ...) of one and then of the other.
template <int first, size_t... lane>
inline Floats every_second(Floats one, Floats other, std::index_sequence<lane...>) {
#ifdef __clang__
  return __builtin_shufflevector(one, other, (2 * int(lane) + first)...);
#else
  return __builtin_shuffle(one, other, Ints{(2 * int(lane) + first)...});
#endif
}

// Lane n: the sum of all lanes of vector n.
inline Floats sums_of(Floats (&each)[kLanes]) {
  constexpr std::make_index_sequence<kLanes> lanes;
#pragma GCC unroll 4
  for (int left = kLanes; left > 1; left /= 2)
#pragma GCC unroll 8
    for (int n = 0; n < left / 2; ++n)
      each[n] = every_second<0>(each[2 * n], each[2 * n + 1], lanes) +
                every_second<1>(each[2 * n], each[2 * n + 1], lanes);
  return each[0];
}

inline Floats dot(const float* a, const float* b, int64_t width) {
  Floats sums = {};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) sums += load(a + d) * load(b + d);
  for (; d < width; ++d) sums[0] += a[d] * b[d];
  return sums;
}

// e to a power that is not above 0, to 2 units in the last place; below -87 next to nothing.
inline Floats exp_of(Floats power) {
  power = power < -87 ? Floats{} - 87 : power;  // what is no number stays none
  // 2^n e^r with |r| <= ln 2 / 2: the number added leaves no digits behind the point.
  const Floats shifted = power * 1.44269504f + 12582912.f, n = shifted - 12582912.f;
  const Floats r = (power - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats e = Floats{} + 1.f / 5040;
  for (const float factor : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f})
    e = e * r + factor;
  return e * reinterpret_cast<Floats>((reinterpret_cast<Ints>(shifted) << 23) + 0x3f800000);
}

// Sums of `vectors` neighbouring vectors of rows, weighted by shares. In the meantime what lies at
// the same places of `ahead` is fetched, if there is any.
template <int vectors>
void mix(
    const float* shares, const int64_t* rows, int64_t count, const float* values, float* out,
    const float* ahead, const int64_t* places) {
  Floats sums[vectors] = {};
  for (int64_t n = 0; n < count; ++n) {
    if (ahead) fetch_row(ahead + places[n], vectors * kLanes);
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sums[v] += shares[n] * load(values + rows[n] + v * kLanes);
  }
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
    const int64_t blocks = (room + kLanes - 1) / kLanes;
    std::vector<Floats> shares(group * blocks);
    for (int64_t each = begin; each < end; ++each) {
      const int64_t b = each / shared, kind = each % shared, head = kind * group;
      if (each == begin || kind == 0) {
        places.clear();
        rows.clear();
        for (int64_t r = 0; r < room; ++r) {
          if (!seen[b * m0 + r * m1]) continue;
          places.push_back(r * k2);
          rows.push_back(r * v2);
        }
      }
      const int64_t count = places.size();
      const float* asks = queries + b * q0 + head * q1;
      const float* keys = all_keys + b * k0 + kind * k1;
      const float* values = all_values + b * v0 + kind * v1;
      // While the first head's values are mixed, keys of the next group are fetched.
      const bool fetched = each > begin && kind > 0;
      const bool goes_on = each + 1 < end && kind + 1 < shared;
      for (int64_t first = 0; first < count; first += kLanes) {
        const int64_t some = std::min<int64_t>(kLanes, count - first);
        for (int64_t g = 0; g < group; ++g) {
          Floats dots[kLanes] = {};
          for (int64_t n = 0; n < some; ++n) {
            if (g == 0) {
              const int64_t far = std::min(first + n + kRowsAhead, count - 1);
              if (!fetched) fetch_row(keys + places[far], width);
              fetch_row(values + rows[first + n], width);
            }
            dots[n] = dot(asks + g * q1, keys + places[first + n], width);
          }
          Floats& scores = shares[g * blocks + first / kLanes];
          scores = sums_of(dots) * float(scaling);
          for (int64_t n = some; n < kLanes; ++n) scores[n] = -INFINITY;
        }
      }
      for (int64_t g = 0; g < group; ++g) {
        Floats* some = shares.data() + g * blocks;
        const auto* share = reinterpret_cast<const float*>(some);
        Floats tops = Floats{} - INFINITY, totals = {};
        for (int64_t n = 0; n * kLanes < count; ++n) tops = tops > some[n] ? tops : some[n];
        float top = tops[0];
        for (int lane = 1; lane < kLanes; ++lane) top = std::max(top, tops[lane]);
        for (int64_t n = 0; n * kLanes < count; ++n) totals += some[n] = exp_of(some[n] - top);
        float total = 0;
        for (int lane = 0; lane < kLanes; ++lane) total += totals[lane];
        for (int64_t n = 0; n * kLanes < count; ++n) some[n] /= total;
        float* sums = to + (b * heads + head + g) * width;
        const auto mix_at = [&](auto one, int64_t d) {
          const float* ahead = goes_on && g == 0 ? keys + k1 + d : nullptr;
          one(share, rows.data(), count, values + d, sums + d, ahead, places.data());
        };
        int64_t d = 0;
        for (; d + 8 * kLanes <= width; d += 8 * kLanes) mix_at(mix<8>, d);
        for (; d + kLanes <= width; d += kLanes) mix_at(mix<1>, d);
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
