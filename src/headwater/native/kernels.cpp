// The entry points, and the choice of the instruction set. Plain C++17, no Python, no torch: pointers in, floats out.

#include <cstdlib>
#include <cstring>
#include <new>

namespace {

enum Cell { RNN = 0, RNN_RELU = 1, LSTM = 2, GRU = 3, GRU_RESET_BEFORE = 4 };

struct Layer {
    long cell, gates, hidden, steps;
    const long* counts;      // rows running at each step, falling
    const float* weight_hh;  // (gates * hidden, hidden)
    const float* bias_n;     // (hidden): GRU's bias inside the reset
    const float *h0, *c0;    // (counts[0], hidden)
    float* activations;      // (N, gates * hidden): in the input's share with the biases, out the gates
    float* y;                // (N, hidden)
    float* c;                // (N, hidden): LSTM's cells
    float* extra;            // (N, hidden): GRU's recurrent product of the candidate
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

struct Gradients {
    const float *y, *c;  // (N, hidden); c may be null
    float* activations;  // (N, gates * hidden), before the gates' functions
    float* extra;        // (N, hidden): of GRU's recurrent product
    float *h0, *c0;      // (counts[0], hidden)
};

}  // namespace

// The text is compiled for each instruction set; the headers above were read for the plain one.

#if defined(__x86_64__) && defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#elif defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif
#if defined(__x86_64__)
namespace avx512 {
namespace {
constexpr int WIDTH = 16, ROWS = 13;
#include "kernels.inc"
}  // namespace
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
namespace {
constexpr int WIDTH = 8, ROWS = 6;
#include "kernels.inc"
}  // namespace
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace plain {
namespace {
constexpr int WIDTH = 4, ROWS = 6;  // SSE2, NEON, or whatever four floats become
#include "kernels.inc"
}  // namespace
}  // namespace plain

namespace {

int best() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

int level = best();

}  // namespace

#if defined(__x86_64__)
#define AT_LEVEL(CALL)            \
    if (level == 2)               \
        avx512::CALL;             \
    else if (level == 1)          \
        avx2::CALL;               \
    else                          \
        plain::CALL
#else
#define AT_LEVEL(CALL) plain::CALL
#endif

// Returns 0, or 1 where memory ran out: no exception may cross into Python.
#define GUARDED(CALL)                    \
    try {                                \
        AT_LEVEL(CALL);                  \
    } catch (const std::bad_alloc&) {    \
        return 1;                        \
    }                                    \
    return 0

extern "C" {

// 0 plain, 1 AVX2 with FMA, 2 AVX-512.
int headwater_level() { return level; }

// Takes a lower level than the processor's, for tests; returns what is in use now.
int headwater_use_level(int wanted) { return level = wanted < 0 ? 0 : wanted < best() ? wanted : best(); }

int headwater_forward(const Layer* layer) { GUARDED(forward(*layer)); }

int headwater_backward(const Layer* layer, const Gradients* gradients) { GUARDED(backward(*layer, *gradients)); }

// c += a * b in float32; strides in floats.
int headwater_product(long rows, long columns, long depth, const float* a, long a_row, long a_column, const float* b,
                      long b_row, long b_column, float* c) {
    GUARDED(product(rows, columns, depth, a, a_row, a_column, b, b_row, b_column, c));
}
}
