// The entry points, and the choice of the instruction set. Plain C++17, no Python, no torch: pointers in, floats out.

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static_assert(sizeof(long) == 8, "the counts and sizes are 64-bit integers");

namespace {

enum Cell { RNN = 0, RNN_RELU = 1, LSTM = 2, GRU = 3, GRU_RESET_BEFORE = 4 };

struct Layer {
    long cell, gates, inputs, hidden, steps;
    long half;           // whether products are of bfloat16 numbers
    const long* counts;  // rows running at each step, falling
    const float* x;      // (N, inputs)
    const float *weight_ih, *weight_hh, *bias_ih, *bias_hh;  // as in torch.nn
    const float *h0, *c0;  // (counts[0], hidden); null for zeros
    float* activations;    // (N, gates * hidden): the gates
    float* y;              // (N, hidden)
    float* c;              // (N, hidden): LSTM's cells
    float* extra;          // (N, hidden): GRU's recurrent product of the candidate, with its bias
};

// Memory for one call, at the start of a cache line.
class Floats {
  public:
    Floats() = default;
    Floats(const Floats&) = delete;
    Floats& operator=(const Floats&) = delete;
    ~Floats() { std::free(memory_); }

    void resize(long count);
    float* data() { return values_; }
    const float* data() const { return values_; }

  private:
    void* memory_ = nullptr;
    float* values_ = nullptr;
    long size_ = 0;
};

[[gnu::noinline]] void Floats::resize(long count) {
    if (count <= size_) return;
    std::free(memory_);
    memory_ = std::malloc(count * sizeof(float) + 64);
    if (!memory_) throw std::bad_alloc();
    values_ = reinterpret_cast<float*>((reinterpret_cast<unsigned long long>(memory_) + 63) / 64 * 64);
    size_ = count;
}

// Null where a gradient isn't given or isn't wanted.
struct Gradients {
    const float *y, *c;  // (N, hidden)
    float* activations;  // (N, gates * hidden), before the gates' functions; always wanted
    float* extra;        // (N, hidden): of GRU's recurrent product
    float* x;
    float *weight_ih, *weight_hh, *bias_ih, *bias_hh;  // added to
    float *h0, *c0;
};

// A layer of a stream of one row; see step.inc.
struct StepLayer {
    long cell, inputs, hidden;
    const float* weights;  // packed
    float* memory;         // 4 times whole(hidden): h, LSTM's c, and room to work in
};

constexpr long UNITS = 16, BLOCKS = 4;  // of a panel of such a layer

inline long whole(long hidden) { return (hidden + UNITS - 1) / UNITS * UNITS; }

inline long step_floats(long cell, long inputs, long hidden) {
    const long gates = cell == LSTM ? 4 : cell == GRU || cell == GRU_RESET_BEFORE ? 3 : 1;
    return whole(hidden) * (gates * (1 + inputs + hidden) + (cell == GRU));
}

}  // namespace

// The text is compiled once for each instruction set; the headers above were read for the plain one.

#define TEXT(...) #__VA_ARGS__
#if defined(__clang__)
#define BEGIN_TARGET(NAMES) _Pragma(TEXT(clang attribute push(__attribute__((target(NAMES))), apply_to = function)))
#define END_TARGET _Pragma("clang attribute pop")
#else
#define BEGIN_TARGET(NAMES) _Pragma("GCC push_options") _Pragma(TEXT(GCC target(NAMES)))
#define END_TARGET _Pragma("GCC pop_options")
#endif

#if defined(__x86_64__)

BEGIN_TARGET("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma")
namespace avx512_bf16 {
namespace {
constexpr int WIDTH = 16, ROWS = 13;
#define HALF
#include "vectors.inc"
#include "products.inc"
#include "cells.inc"
#include "softmax.inc"
#include "pooling.inc"
#include "step.inc"
#undef HALF
}  // namespace
}  // namespace avx512_bf16
END_TARGET

BEGIN_TARGET("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
namespace avx512 {
namespace {
constexpr int WIDTH = 16, ROWS = 13;
#include "vectors.inc"
#include "products.inc"
#include "cells.inc"
#include "softmax.inc"
#include "pooling.inc"
#include "step.inc"
}  // namespace
}  // namespace avx512
END_TARGET

BEGIN_TARGET("avx2,fma")
namespace avx2 {
namespace {
constexpr int WIDTH = 8, ROWS = 6;
#include "vectors.inc"
#include "products.inc"
#include "cells.inc"
#include "softmax.inc"
#include "pooling.inc"
#include "step.inc"
}  // namespace
}  // namespace avx2
END_TARGET

#endif

namespace plain {
namespace {
constexpr int WIDTH = 4, ROWS = 6;  // NEON, SSE2, or whatever four floats become
#include "vectors.inc"
#include "products.inc"
#include "cells.inc"
#include "softmax.inc"
#include "pooling.inc"
#include "step.inc"
}  // namespace
}  // namespace plain

namespace {

// The levels, from the plainest: each has what the ones before it have.
enum Level { PLAIN, AVX2, AVX512, AVX512_BF16 };

int best() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return PLAIN;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl"))
        return AVX2;
    return __builtin_cpu_supports("avx512bf16") ? AVX512_BF16 : AVX512;
#else
    return PLAIN;
#endif
}

int level = best();

}  // namespace

#if defined(__x86_64__)
#define AT_LEVEL(CALL)              \
    switch (level) {                \
        case AVX512_BF16:           \
            avx512_bf16::CALL;      \
            break;                  \
        case AVX512:                \
            avx512::CALL;           \
            break;                  \
        case AVX2:                  \
            avx2::CALL;             \
            break;                  \
        default:                    \
            plain::CALL;            \
    }
#else
#define AT_LEVEL(CALL) plain::CALL
#endif

// Returns 0, or 1 where memory ran out: no exception may cross into Python.
#define GUARDED(CALL)                 \
    try {                             \
        AT_LEVEL(CALL);               \
    } catch (const std::bad_alloc&) { \
        return 1;                     \
    }                                 \
    return 0

#define ENTRY __attribute__((visibility("default")))

extern "C" {

// Told to callers, who have these structures and the entries' arguments in their own words: another number for each
// change of those.
ENTRY int headwater_interface() { return 3; }
ENTRY long headwater_layer_bytes() { return sizeof(Layer); }
ENTRY long headwater_gradients_bytes() { return sizeof(Gradients); }

// The level in use, and the best that this processor has.
ENTRY int headwater_level() { return level; }
ENTRY int headwater_best_level() { return best(); }

// Uses a lower level than the processor's best one.
ENTRY void headwater_use_level(int wanted) { level = wanted < PLAIN ? PLAIN : wanted < best() ? wanted : best(); }

ENTRY int headwater_forward(const Layer* layer) { GUARDED(forward(*layer)); }

ENTRY int headwater_backward(const Layer* layer, const Gradients* gradients) { GUARDED(backward(*layer, *gradients)); }

// c = a * b (`fresh`) or c += a * b; strides in floats, one stride of each factor is 1, c is dense. `half` rounds the
// factors to bfloat16.
ENTRY int headwater_product(long rows, long columns, long depth, const float* a, long a_row, long a_column, const float* b,
                      long b_row, long b_column, float* c, int half, int fresh) {
    GUARDED(product(rows, columns, depth, a, a_row, a_column, b, b_row, b_column, c, half, fresh));
}

// See softmax.inc.
ENTRY int headwater_linear_cross_entropy(long rows, long inputs, long classes, long across, const float* x,
                                         const float* weight, const float* bias, const long* targets, float* gradient,
                                         double* loss, int half) {
    GUARDED(linear_cross_entropy(rows, inputs, classes, across, x, weight, bias, targets, gradient, loss, half));
}

// See pooling.inc.
ENTRY int headwater_pool(long features, long forward, long steps, const long* counts, const long* order, const float* y,
                         float* last, float* largest, float* mean, long stride, float* ties) {
    GUARDED(pool(features, forward, steps, counts, order, y, last, largest, mean, stride, ties));
}

ENTRY int headwater_pool_backward(long features, long forward, long steps, const long* counts, const long* order,
                                  const float* y, const float* largest, const float* ties, const float* dlast,
                                  const float* dlargest, const float* dmean, long stride, float* dy) {
    GUARDED(pool_backward(features, forward, steps, counts, order, y, largest, ties, dlast, dlargest, dmean, stride, dy));
}

// Floats of a layer's packed weights.
ENTRY long headwater_step_floats(long cell, long inputs, long hidden) { return step_floats(cell, inputs, hidden); }

// Packs a layer's weights, which are as in torch.nn, for headwater_step at any level.
ENTRY void headwater_pack_step(long cell, long inputs, long hidden, const float* weight_ih, const float* weight_hh,
                               const float* bias_ih, const float* bias_hh, float* weights) {
    AT_LEVEL(pack_step(cell, inputs, hidden, weight_ih, weight_hh, bias_ih, bias_hh, weights));
}

// Advances one row by one step through all layers: x (inputs of the first) to y (hidden of the last). The states in the
// layers' memory go on; all of that memory must have been zeros at the beginning. Allocates nothing.
ENTRY void headwater_step(const StepLayer* layers, long count, const float* x, float* y) {
    AT_LEVEL(step(layers, count, x, y));
}

// Where each step of a padded batch (rows x time) lies in the packed one.
//
// Given `lengths` (rows), each from 1 to time. Written: order (rows): the rows by falling length; counts (time): rows
// running at each step; for the N packed steps place: in the flattened padded batch, row, and mirror: the packed step
// that takes its place when each row is read from its end; last (rows): each row's last packed step. Each of the three
// has room for rows x time. Returns N, or -1 where a length is out of range.
ENTRY long headwater_plan(const long* lengths, long rows, long time, long* order, long* counts, long* place, long* row,
                          long* mirror, long* last) {
    // A counting sort: counts holds how many rows have each length, then where the next of them goes.
    for (long t = 0; t < time; ++t) counts[t] = 0;
    for (long r = 0; r < rows; ++r) {
        if (lengths[r] < 1 || lengths[r] > time) return -1;
        ++counts[lengths[r] - 1];
    }
    for (long t = time - 1, longer = 0; t >= 0; --t) {
        const long equal = counts[t];
        counts[t] = longer;
        longer += equal;
    }
    for (long r = 0; r < rows; ++r) order[counts[lengths[r] - 1]++] = r;
    long n = 0, running = rows;
    for (long t = 0; t < time; ++t) {
        while (running && lengths[order[running - 1]] <= t) --running;
        counts[t] = running;
        for (long rank = 0; rank < running; ++rank, ++n) {
            row[n] = order[rank];
            place[n] = order[rank] * time + t;
            last[order[rank]] = n;
        }
    }
    // A row's packed steps, first to last, are where its mirrored ones are, last to first.
    for (long rank = 0; rank < rows; ++rank) {
        const long length = lengths[order[rank]];
        long from = rank, to = last[order[rank]];
        for (long t = 0; t < length; ++t) {
            mirror[from] = to;
            from += counts[t];
            to -= t + 2 <= length ? counts[length - 2 - t] : 0;
        }
    }
    return n;
}
}
