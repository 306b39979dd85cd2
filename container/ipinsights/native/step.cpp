// One optimiser step on the CPU: what `ipinsights/training/step.py` writes down in torch, for any shape, several times as fast.
//
// The arithmetic is that file's; read it first. What is different here is where the numbers are while they are needed.
//
//   1. Tiles. A mini-batch is cut into tiles of some hundred addresses, so small that what the tile needs (its
//      encodings, what each block saw, their gradients: m rows of D floats each) stays in the core's own cache from the
//      first sum of prefix rows to the last gradient. Of a tile remain the gradients of its addresses (`d_address`) and
//      entities (`d_entity`), and what the dense parameters learn, summed over the thread's tiles.
//   2. Rows. Which addresses and entities a table row was part of is known before their gradients are: a hash table of
//      the step's rows, as large as the step and not as the table, lists each row's sources. So a row's gradient is
//      summed from its sources in registers and goes straight into Adam: it is never written, and nothing is sorted.
//      The unknown rows, which most addresses have several of, are summed in the tile instead.
//   3. Adam's state lies beside its weight, so that a row is one run of memory, asked for some rows ahead. (A prefix row
//      has one number of it, in an array that is small enough to stay in the cache.)
//   4. Matrix products are of m x D by D x D: blocks of ROWS x PANEL in registers over panels that were packed when the
//      weights last changed (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, TOMS 2008).
//   5. Threads take neighbouring tiles, then the rows that are theirs by number; between the two they meet once. All
//      sums run in an order that the number of threads alone decides.
//
// Vectors are GCC's (clang has them too), so one text serves x86-64 and Arm. Rows in buffers of our own are padded with
// zeros to a multiple of PANEL; rows of the tables are not.

#include "native.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr int64_t WIDTH = 8;          // floats in a vector
constexpr int64_t ROWS = 6;           // of a product's register block: 6 x 2 vectors, of 16 that AVX2 has
constexpr int64_t PANEL = 2 * WIDTH;  // columns of it
constexpr int64_t STRIP = 4 * ROWS;   // rows that meet a panel while it is in the first-level cache
constexpr int64_t DEPTH = 128;        // rows of a tile that a product over rows takes at a time
constexpr int64_t AHEAD = 12;         // table rows that are asked for before they are needed
constexpr int64_t AHEAD_ENCODE = 4, AHEAD_SOURCES = 4;
constexpr int64_t LINE = 64 / sizeof(float);
constexpr int SPINS = 4000;  // looks at a shared word, some 50 microseconds, before a thread goes to sleep

typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

int64_t padded(int64_t dim) { return (dim + PANEL - 1) / PANEL * PANEL; }

// Memory that grows, does not keep what was in it, and is touched only where it is used.
template <class T>
class Buffer {
  public:
    T* reserve(int64_t count) {
        if (count > size_) {
            const std::size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
            data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
            if (!data_) std::terminate();  // as for any memory that there is not, in whichever thread
            size_ = count;
        }
        return data_.get();
    }
    T* zeros(int64_t count) {
        T* data = reserve(count);
        std::fill_n(data, count, T());
        return data;
    }
    T* get() const { return data_.get(); }

  private:
    struct Free {
        void operator()(T* data) const { std::free(data); }
    };
    std::unique_ptr<T[], Free> data_;
    int64_t size_ = 0;
};

// ---------------------------------------------------------------------------------------------------------- threads

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Wait until a word is no longer `old`: look for a while, since the others are nearly done, then sleep.
void await(std::atomic<int>& word, int old) {
    for (int i = 0; i < SPINS; ++i) {
        if (word.load(std::memory_order_acquire) != old) return;
        relax();
    }
    word.wait(old, std::memory_order_acquire);
}

// Threads that wait between jobs. The caller is thread 0. (Not OpenMP: its threads spin without end between jobs, which
// on a busy machine takes the core from whoever has the work.)
class Team {
  public:
    explicit Team(int size) : size_(size) {
        for (int i = 1; i < size; ++i) workers_.emplace_back([this, i] { work(i); });
    }
    ~Team() {
        job_ = nullptr;
        begin();
        for (auto& worker : workers_) worker.join();
    }
    int size() const { return size_; }

    void run(const std::function<void(int)>& job) {
        job_ = &job;
        begin();
        job(0);
        meet();
    }
    // Inside a job: nobody goes on before everybody is here.
    void meet() {
        const int round = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            round_.notify_all();
        } else {
            await(round_, round);
        }
    }

  private:
    void begin() {
        jobs_.fetch_add(1, std::memory_order_release);
        jobs_.notify_all();
    }
    void work(int number) {
        for (int seen = 0;;) {
            await(jobs_, seen);
            ++seen;
            if (!job_) return;
            (*job_)(number);
            meet();
        }
    }

    int size_;
    const std::function<void(int)>* job_ = nullptr;
    std::atomic<int> jobs_{0}, arrived_{0}, round_{0};
    std::vector<std::thread> workers_;
};

// --------------------------------------------------------------------------------------------------------- row sums

// out[0:dim] = sum over j of rows[j][0:dim]; `scaled`: of scale[j] * rows[j]. Whole chunks stay in registers.
template <bool scaled>
void sum(float* __restrict out, const float* const* rows, const float* scale, int64_t count, int64_t dim) {
    int64_t c = 0;
    const auto chunk = [&]<int vectors>() {
        Vector total[vectors] = {};
        for (int64_t j = 0; j < count; ++j)
            for (int v = 0; v < vectors; ++v) {
                const Vector value = load(rows[j] + c + v * WIDTH);
                if constexpr (scaled) total[v] += scale[j] * value;
                else total[v] += value;
            }
        for (int v = 0; v < vectors; ++v) store(out + c + v * WIDTH, total[v]);
        c += vectors * WIDTH;
    };
    while (c + 8 * WIDTH <= dim) chunk.template operator()<8>();
    while (c + WIDTH <= dim) chunk.template operator()<1>();
    for (; c < dim; ++c) {
        float total = 0;
        for (int64_t j = 0; j < count; ++j) total += scaled ? scale[j] * rows[j][c] : rows[j][c];
        out[c] = total;
    }
}

// The inner product of two padded rows.
float dot(const float* a, const float* b, int64_t width) {
    Vector even = {}, odd = {};
    for (int64_t c = 0; c < width; c += PANEL) {
        even += load(a + c) * load(b + c);
        odd += load(a + c + WIDTH) * load(b + c + WIDTH);
    }
    even += odd;
    float total = 0;
    for (int64_t i = 0; i < WIDTH; ++i) total += even[i];
    return total;
}

// Into the second-level cache, which can wait for more lines at once than the first: twice as fast.
void ask_for(const float* row, int64_t floats) {
    for (int64_t c = 0; c < floats; c += LINE) __builtin_prefetch(row + c, 0, 2);
}

// -------------------------------------------------------------------------------------------------- matrix products

// For `rows` rows and one panel, the sums over p < depth of a[i * row + p * step] * panel[p]; `put(i, left, right)` takes
// them from the registers.
template <int rows, class Put>
void block(const float* a, int64_t row, int64_t step, const float* panel, int64_t depth, const Put& put) {
    Vector sums[rows][2] = {};
    for (int64_t p = 0; p < depth; ++p) {
        const Vector left = load(panel + p * PANEL), right = load(panel + p * PANEL + WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) {
            const float value = a[i * row + p * step];
            sums[i][0] += value * left;
            sums[i][1] += value * right;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) put(i, sums[i][0], sums[i][1]);
}

#if defined(__x86_64__) && !defined(NARROW)
// The same where the processor has AVX-512: a panel is one of its vectors, and it has registers for twice the rows. Each
// sum runs in the same order, so the result is the same to the last bit: a test compares it with a build that is NARROW.
#define WITH_AVX512 __attribute__((target("avx512f")))
constexpr int64_t MOST_ROWS = 2 * ROWS;
inline bool wide() { return __builtin_cpu_supports("avx512f"); }

typedef float Wide __attribute__((vector_size(PANEL * sizeof(float))));
typedef float UnalignedWide __attribute__((vector_size(PANEL * sizeof(float)), aligned(4), may_alias));

template <int rows, class Put>
WITH_AVX512 void wide_block(const float* a, int64_t row, int64_t step, const float* panel, int64_t depth,
                            const Put& put) {
    Wide sums[rows] = {};
    for (int64_t p = 0; p < depth; ++p) {
        const Wide values = *reinterpret_cast<const UnalignedWide*>(panel + p * PANEL);
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i) sums[i] += a[i * row + p * step] * values;
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
        Vector halves[2];
        std::memcpy(halves, &sums[i], sizeof halves);
        put(i, halves[0], halves[1]);
    }
}
#else
constexpr int64_t MOST_ROWS = ROWS;
constexpr bool wide() { return false; }
#endif

// A block of `rows` rows, which are `most` at most.
template <int most, class Put>
void any_block(int64_t rows, const float* a, int64_t row, int64_t step, const float* panel, int64_t depth,
               const Put& put) {
    if constexpr (most > 1)
        if (rows < most) return any_block<most - 1>(rows, a, row, step, panel, depth, put);
#if defined(WITH_AVX512)
    if (wide()) return wide_block<most>(a, row, step, panel, depth, put);
#endif
    block<most>(a, row, step, panel, depth, put);
}

// Rows of the next block, of as many as are left: the last two share theirs, since a block of few waits for itself.
int64_t next_rows(int64_t left) {
    const int64_t most = wide() ? MOST_ROWS : ROWS;
    return left <= most ? left : left < 2 * most ? (left + 1) / 2 : most;
}

// a [m, width] times a packed matrix [width, width]; `put(row, column, left, right)` takes a panel's sums of a row.
template <class Put>
void multiply(const float* a, int64_t m, const float* packed, int64_t width, const Put& put) {
    for (int64_t strip = 0; strip < m; strip += STRIP) {
        const int64_t end = std::min(m, strip + STRIP);
        for (int64_t column = 0; column < width; column += PANEL)
            for (int64_t row = strip, rows; row < end; row += rows) {
                rows = next_rows(end - row);
                any_block<MOST_ROWS>(rows, a + row * width, width, 1, packed + column * width, width,
                                     [&](int64_t i, Vector left, Vector right) { put(row + i, column, left, right); });
            }
    }
}

// out [width, width] += the transpose of d [m, width] times a [m, width], of which a panel is packed at a time.
void multiply_transposed(const float* d, const float* a, int64_t m, int64_t width, float* out) {
    alignas(64) float panel[DEPTH * PANEL];
    for (int64_t begin = 0; begin < m; begin += DEPTH) {
        const int64_t depth = std::min(DEPTH, m - begin);
        for (int64_t column = 0; column < width; column += PANEL) {
            for (int64_t p = 0; p < depth; ++p)
                for (int64_t c = 0; c < PANEL; c += WIDTH)
                    store(panel + p * PANEL + c, load(a + (begin + p) * width + column + c));
            for (int64_t row = 0, rows; row < width; row += rows) {
                rows = next_rows(width - row);
                any_block<MOST_ROWS>(rows, d + begin * width + row, 1, width, panel, depth,
                                     [&](int64_t i, Vector left, Vector right) {
                                         float* to = out + (row + i) * width + column;
                                         store(to, load(to) + left);
                                         store(to + WIDTH, load(to + WIDTH) + right);
                                     });
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- loss

// e^x for x <= 0, to two units in the last place; below -87 what e^-87 is. A NaN stays one.
inline float exp_negative(float x) {
    x = x < -87.f ? -87.f : x;
    const float shifted = x * 1.44269504f + 12582912.f;  // the nearest whole number of halvings, in the last bits
    const float halvings = shifted - 12582912.f;
    const float rest = (x - halvings * 0.693359375f) + halvings * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;  // Cephes' expf
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = static_cast<int32_t>((static_cast<uint32_t>(bits) + 127u) << 23);
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return sum * power;
}

struct Totals {
    double loss = 0, right = 0, records = 0;
};

// Scores become the loss's gradients with respect to them. All arrays have `count` entries, a multiple of LANES.
constexpr int64_t LANES = 8;
void cross_entropy(float* score, const float* label, const float* weight, int64_t count, Totals& totals) {
    // A sum of log(1 + t) is the log of a product: t <= 1, so 512 factors cannot overflow a double.
    constexpr int64_t FACTORS = 512;
    for (int64_t begin = 0; begin < count; begin += LANES * FACTORS) {
        double product[LANES], loss[LANES] = {}, right[LANES] = {}, records[LANES] = {};
        std::fill(product, product + LANES, 1.0);
        for (int64_t i = begin; i < std::min(count, begin + LANES * FACTORS); i += LANES)
            for (int64_t lane = 0; lane < LANES; ++lane) {
                const float s = score[i + lane], y = label[i + lane], w = weight[i + lane];
                const float tail = exp_negative(s > 0 ? -s : s);
                const float sigmoid = (s > 0 ? 1.f : tail) / (1.f + tail);
                loss[lane] += w * ((s > 0 ? s : s - s) - y * s);  // s - s is 0, but NaN of a NaN
                product[lane] *= 1.0 + w * tail;
                right[lane] += (s > 0) == (y > .5f) ? w : 0.f;
                records[lane] += w;
                score[i + lane] = (sigmoid - y) * w;
            }
        for (int64_t lane = 0; lane < LANES; ++lane) {
            totals.loss += loss[lane] + std::log(product[lane]);
            totals.right += right[lane];
            totals.records += records[lane];
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- Adam

// The mean gradient lies a stride behind the weights, and that of its square two.
void adam(float* __restrict weight, int64_t stride, const float* __restrict gradient, int64_t count, Rate rate,
          const Update& u) {
    float* __restrict mean = weight + stride;
    float* __restrict square = weight + 2 * stride;
    for (int64_t i = 0; i < count; ++i) {
        const float g = gradient[i];
        mean[i] += u.mean_share * (g - mean[i]);
        square[i] += u.square_share * (g * g - square[i]);
        weight[i] =
            (1 - rate.decay) * weight[i] - rate.step * mean[i] / (std::sqrt(square[i]) * u.deviation + u.epsilon);
    }
}

// ------------------------------------------------------------------------------------------------------------- rows

// A number that has little to do with its neighbours' (Knuth's multiplicative hash).
uint32_t scattered(int32_t row) { return static_cast<uint32_t>(row) * 2654435761u; }

// The distinct rows of a step that one thread takes care of, in the order met, and where each one's gradients are.
class Index {
  public:
    void begin(int64_t references) {
        int64_t size = 64;
        while (size < references + references / 4) size *= 2;
        mask_ = size - 1;
        std::memset(table_.reserve(size), -1, size * sizeof(Entry));
        references_.reserve(references);
        count_ = 0;
        rows.clear();
        starts.clear();
    }
    void add(int32_t row, int32_t source) {
        Entry* table = table_.get();
        int64_t at = (scattered(row) >> 7) & mask_;
        while (table[at].row != row && table[at].row >= 0) at = (at + 1) & mask_;
        if (table[at].row < 0) {
            table[at] = {row, static_cast<int32_t>(rows.size())};
            rows.push_back(row);
            starts.push_back(0);
        }
        ++starts[table[at].slot];
        references_.get()[count_++] = {table[at].slot, source};
    }
    void end() {
        int32_t total = 0;
        for (auto& start : starts) total += std::exchange(start, total);
        sources.resize(total);
        for (int64_t i = 0; i < count_; ++i) {
            const auto& [slot, source] = references_.get()[i];
            sources[starts[slot]++] = source;
        }
        // Each start has moved to its end, which is the next one's start.
        starts.insert(starts.begin(), 0);
    }

    std::vector<int32_t> rows, starts, sources;  // row j's sources: sources[starts[j]] to sources[starts[j + 1] - 1]

  private:
    struct Entry {
        int32_t row, slot;
    };
    struct Reference {
        int32_t slot, source;
    };
    Buffer<Entry> table_;
    Buffer<Reference> references_;
    int64_t mask_ = 0, count_ = 0;
};

// What a thread works with, for the tile at hand.
struct Bench {
    Buffer<float> x, seen, d, d_other, e, score, label, weight, gradient;
    std::vector<const float*> pointers;
    std::vector<float> factors;
};

// What a thread's tiles teach the dense parameters and the unknown rows, and the table rows that it takes care of.
struct Share {
    Buffer<float> w, b, typical, unknown;
    std::vector<int32_t> met;  // how many sources each unknown row has
    Totals totals;
    Index entities, prefixes;
};

class Steps {
  public:
    Steps(const Shape& shape, const Parameters& parameters)
        : shape_(shape), p_(parameters), width_(padded(shape.dim)), team_(static_cast<int>(shape.threads)),
          benches_(shape.threads), shares_(shape.threads) {
        const int64_t size = shape.blocks * width_ * width_;
        forward_.zeros(size);
        backward_.zeros(size);
        biases_.zeros(shape.blocks * width_);
        pack();
    }

    // From now on, count there the steps that touch each prefix row.
    void count(int32_t* touches) { touches_ = touches; }

    // Take the blocks' weights as they are now.
    void pack() {
        pack_biases();
        team_.run([&](int thread) { each_own_row(thread, [&](int64_t block, int64_t n) { pack(block, n); }); });
    }

    // One step, or, without an update, its gradients alone, which stay here until the next step. Adds to the totals.
    void run(const Batch& batch, const Update* update, double* totals) {
        batch_ = batch;
        groups_ = (batch.size + batch.group - 1) / batch.group;
        tiles_ = (batch.size + batch.tile - 1) / batch.tile;
        tile_addresses_ = batch.tile + batch.tile / batch.group * batch.random_rate;
        d_entity_.reserve(batch.size * width_);
        d_address_.reserve((batch.size + groups_ * batch.random_rate) * width_);
        const int64_t threads = team_.size();
        team_.run([&](int thread) {
            Share& share = shares_[thread];
            index(thread, share);
            start(share);
            for (int64_t tile = thread * tiles_ / threads; tile < (thread + 1) * tiles_ / threads; ++tile)
                learn(tile, share, benches_[thread]);
            team_.meet();
            add_up(thread);
            if (!update) return;
            apply_dense(thread, *update);
            apply_rows(p_.entity, share.entities, d_entity_.get(), benches_[thread], *update);
            apply_rows(p_.prefix, share.prefixes, d_address_.get(), benches_[thread], *update);
            if (!touches_) return;
            for (const int32_t row : share.prefixes.rows) ++touches_[row];  // each row is one thread's own
        });
        for (int64_t level = 0; update && touches_ && level < shape_.levels; ++level)
            touches_[level] += shares_[0].met[level] > 0;
        for (const auto& share : shares_) {
            totals[0] += share.totals.loss;
            totals[1] += share.totals.right;
            totals[2] += share.totals.records;
        }
    }

    int64_t touched(bool prefix) const {
        const auto& met = shares_[0].met;
        int64_t count = prefix ? met.size() - std::count(met.begin(), met.end(), 0) : 0;
        for (const auto& share : shares_) count += (prefix ? share.prefixes : share.entities).rows.size();
        return count;
    }

    // The gradients of the last step: of a table's rows, [touched, dim], and of the dense parameters.
    void collect(bool prefix, int64_t* rows, int64_t* sources, float* values) {
        const float* gradients = prefix ? d_address_.get() : d_entity_.get();
        for (int64_t level = 0; prefix && level < shape_.levels; ++level) {
            if (!shares_[0].met[level]) continue;
            *rows++ = level;
            *sources++ = shares_[0].met[level];
            std::copy_n(shares_[0].unknown.get() + level * width_, shape_.dim, values);
            values += shape_.dim;
        }
        for (const auto& share : shares_) {
            const Index& own = prefix ? share.prefixes : share.entities;
            for (std::size_t j = 0; j < own.rows.size(); ++j, values += shape_.dim) {
                *rows++ = own.rows[j];
                *sources++ = own.starts[j + 1] - own.starts[j];
                add_sources(own, j, gradients, benches_[0], values);
            }
        }
    }
    void collect(float* typical, float* w, float* b) const {
        const Share& total = shares_[0];
        std::copy_n(total.typical.get(), shape_.dim, typical);
        for (int64_t row = 0; row < shape_.blocks * shape_.dim; ++row) {
            const int64_t block = row / shape_.dim, n = row % shape_.dim;
            std::copy_n(total.w.get() + (block * width_ + n) * width_, shape_.dim, w + row * shape_.dim);
            b[row] = total.b.get()[block * width_ + n];
        }
    }

    // The scores of pairs, given as rows: entity [count], prefix [count, levels].
    void score(int64_t count, const int32_t* entity, const int32_t* prefix, float* scores) {
        constexpr int64_t TILE = 256;
        team_.run([&](int thread) {
            Bench& bench = benches_[thread];
            float *x = bench.x.reserve(TILE * width_), *seen = bench.seen.reserve(TILE * width_);
            float* e = bench.e.reserve(width_);
            for (int64_t begin = thread * TILE; begin < count; begin += team_.size() * TILE) {
                const int64_t m = std::min(TILE, count - begin);
                encode(prefix + begin * shape_.levels, m, x, bench);
                for (int64_t k = 0; k < shape_.blocks; ++k) forward(k, m, x, seen);
                for (int64_t i = 0; i < m; ++i) {
                    embed(entity[begin + i], e);
                    scores[begin + i] = dot(e, x + i * width_, width_);
                }
            }
        });
    }

  private:
    const float* prefix_row(int32_t row) const { return p_.prefix + row * shape_.dim; }
    const float* entity_row(int32_t row) const { return p_.entity + row * 3 * shape_.dim; }

    // x[i] = the sum of address i's prefix rows.
    void encode(const int32_t* rows, int64_t count, float* x, Bench& bench) const {
        const int64_t levels = shape_.levels;
        bench.pointers.resize(std::max<std::size_t>(bench.pointers.size(), levels));
        for (int64_t i = 0; i < count; ++i, rows += levels) {
            if (i + AHEAD_ENCODE < count)
                for (int64_t level = 0; level < levels; ++level) {
                    const int32_t row = rows[AHEAD_ENCODE * levels + level];
                    if (row >= levels) ask_for(prefix_row(row), shape_.dim);
                }
            for (int64_t level = 0; level < levels; ++level) bench.pointers[level] = prefix_row(rows[level]);
            sum<false>(x + i * width_, bench.pointers.data(), nullptr, levels, shape_.dim);
            std::fill(x + i * width_ + shape_.dim, x + (i + 1) * width_, 0.f);
        }
    }
    // seen = relu(x), x += W seen + b, for m rows.
    void forward(int64_t k, int64_t m, float* x, float* seen) const {
        for (int64_t i = 0; i < m * width_; ++i) seen[i] = x[i] > 0 ? x[i] : 0;
        const float* b = biases_.get() + k * width_;
        multiply(seen, m, forward_.get() + k * width_ * width_, width_,
                 [&](int64_t row, int64_t column, Vector left, Vector right) {
                     float* to = x + row * width_ + column;
                     store(to, load(to) + load(b + column) + left);
                     store(to + WIDTH, load(to + WIDTH) + load(b + column + WIDTH) + right);
                 });
    }
    void embed(int32_t row, float* __restrict e) const {
        const float* own = entity_row(row);
        for (int64_t c = 0; c < shape_.dim; ++c) e[c] = own[c] + p_.typical[c];
        std::fill(e + shape_.dim, e + width_, 0.f);
    }

    void start(Share& share) const {
        share.w.zeros(shape_.blocks * width_ * width_);
        share.b.zeros(shape_.blocks * width_);
        share.typical.zeros(width_);
        share.unknown.zeros(shape_.levels * width_);
        share.met.assign(shape_.levels, 0);
        share.totals = Totals();
    }

    // A tile's positives, and the prefix rows of its addresses.
    struct Tile {
        int64_t begin, size, groups;
        const int32_t *positive, *random;
    };
    Tile tile_at(int64_t number) const {
        const int64_t begin = number * batch_.tile, size = std::min(batch_.tile, batch_.size - begin);
        return {begin, size, (size + batch_.group - 1) / batch_.group, batch_.positive + begin * shape_.levels,
                batch_.random + begin / batch_.group * batch_.random_rate * shape_.levels};
    }

    // Everything that one tile teaches; the order is step.py's.
    void learn(int64_t number, Share& share, Bench& bench) {
        const Tile tile = tile_at(number);
        const int64_t begin = tile.begin, size = tile.size, groups = tile.groups;
        const int32_t *positive = tile.positive, *random = tile.random;
        const int64_t group = batch_.group, R = batch_.random_rate, S = batch_.shuffled_rate, levels = shape_.levels;
        const int64_t m = size + groups * R, records = 1 + R + S;
        float* result = d_address_.get() + number * tile_addresses_ * width_;
        float* d_entity = d_entity_.get() + begin * width_;

        // Forward.
        float* x = bench.x.reserve(m * width_);
        encode(positive, size, x, bench);
        encode(random, groups * R, x + size * width_, bench);
        float* seen = bench.seen.reserve(shape_.blocks * m * width_);
        for (int64_t k = 0; k < shape_.blocks; ++k) forward(k, m, x, seen + k * m * width_);
        float* e = bench.e.reserve(size * width_);
        for (int64_t i = 0; i < size; ++i) {
            if (i + AHEAD_ENCODE < size) ask_for(entity_row(batch_.entity[begin + i + AHEAD_ENCODE]), shape_.dim);
            embed(batch_.entity[begin + i], e + i * width_);
        }

        // Scores: of each positive, its own address, R random ones, S of others. Where it has no shuffled negative, all
        // is 0, and nothing else looks at it.
        const int32_t *entity = batch_.entity + begin, *others = batch_.partner + begin * S;
        const auto partner = [&](int64_t i, int64_t s) { return others[i * S + s] - begin; };
        const auto apart = [&](int64_t i, int64_t s) { return entity[i] != entity[partner(i, s)]; };
        const int64_t count = (size * records + LANES - 1) / LANES * LANES;
        float *score = bench.score.zeros(count), *label = bench.label.zeros(count), *weight = bench.weight.zeros(count);
        for (int64_t i = 0; i < size; ++i) {
            const float *own = e + i * width_, *drawn = x + (size + i / group * R) * width_;
            float *scores = score + i * records, *labels = label + i * records, *weights = weight + i * records;
            const auto meet = [&](int64_t j, const float* address, float truth) {
                scores[j] = dot(own, address, width_), labels[j] = truth, weights[j] = 1;
            };
            meet(0, x + i * width_, 1);
            for (int64_t r = 0; r < R; ++r) meet(1 + r, drawn + r * width_, 0);
            for (int64_t s = 0; s < S; ++s)
                if (apart(i, s)) meet(1 + R + s, x + partner(i, s) * width_, batch_.novelty[begin + i] / S);
        }
        cross_entropy(score, label, weight, count, share.totals);

        // Back to both sides of the product.
        float* d = shape_.blocks ? bench.d.reserve(m * width_) : result;
        bench.pointers.resize(std::max<std::size_t>(bench.pointers.size(), std::max(records, group)));
        bench.factors.resize(bench.pointers.size());
        const float** pointers = bench.pointers.data();
        float* factors = bench.factors.data();
        std::fill_n(d, size * width_, 0.f);
        for (int64_t i = 0; i < size; ++i) {
            const float *own = e + i * width_, *scores = score + i * records;
            int64_t met = 0;
            const auto meet = [&](int64_t j, int64_t at) {
                pointers[met] = x + at * width_, factors[met++] = scores[j];
            };
            meet(0, i);
            add_scaled(d + i * width_, scores[0], own);
            for (int64_t r = 0; r < R; ++r) meet(1 + r, size + i / group * R + r);
            for (int64_t s = 0; s < S; ++s) {
                if (!apart(i, s)) continue;
                meet(1 + R + s, partner(i, s));
                add_scaled(d + partner(i, s) * width_, scores[1 + R + s], own);
            }
            sum<true>(d_entity + i * width_, pointers, factors, met, width_);
        }
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t first = g * group, members = std::min(group, size - first);
            for (int64_t i = 0; i < members; ++i) pointers[i] = e + (first + i) * width_;
            for (int64_t r = 0; r < R; ++r) {
                for (int64_t i = 0; i < members; ++i) factors[i] = score[(first + i) * records + 1 + r];
                sum<true>(d + (size + g * R + r) * width_, pointers, factors, members, width_);
            }
        }
        for (int64_t i = 0; i < size; ++i) add(share.typical.get(), d_entity + i * width_);

        // ... and through the blocks, last first.
        for (int64_t k = shape_.blocks - 1; k >= 0; --k) {
            const float* saw = seen + k * m * width_;
            multiply_transposed(d, saw, m, width_, share.w.get() + k * width_ * width_);
            for (int64_t i = 0; i < m; ++i) add(share.b.get() + k * width_, d + i * width_);
            float* to = k ? d == bench.d.get() ? bench.d_other.reserve(m * width_) : bench.d.get() : result;
            multiply(d, m, backward_.get() + k * width_ * width_, width_,
                     [&](int64_t row, int64_t column, Vector left, Vector right) {
                         const int64_t at = row * width_ + column;
                         const Vector none = {};
                         store(to + at, load(d + at) + (load(saw + at) > 0 ? left : none));
                         store(to + at + WIDTH, load(d + at + WIDTH) + (load(saw + at + WIDTH) > 0 ? right : none));
                     });
            d = to;
        }
        for (int64_t i = 0; i < m; ++i) {
            const int32_t* rows = i < size ? positive + i * levels : random + (i - size) * levels;
            for (int64_t level = 0; level < levels; ++level)
                if (rows[level] < levels) {
                    add(share.unknown.get() + rows[level] * width_, result + i * width_);
                    ++share.met[rows[level]];
                }
        }
    }

    void add(float* __restrict to, const float* __restrict from) const {
        for (int64_t c = 0; c < width_; ++c) to[c] += from[c];
    }
    void add_scaled(float* __restrict to, float scale, const float* __restrict from) const {
        for (int64_t c = 0; c < width_; ++c) to[c] += scale * from[c];
    }

    // Which of the batch's rows are a thread's own, and which entities and addresses they are part of.
    void index(int thread, Share& share) const {
        const int64_t threads = team_.size(), levels = shape_.levels;
        const auto own = [&](int32_t row) {  // spread evenly, without a division
            return static_cast<int64_t>(scattered(row) * static_cast<std::uint64_t>(threads) >> 32) == thread;
        };
        Index &entities = share.entities, &prefixes = share.prefixes;
        entities.begin(batch_.size);
        for (int64_t i = 0; i < batch_.size; ++i)
            if (own(batch_.entity[i])) entities.add(batch_.entity[i], static_cast<int32_t>(i));
        entities.end();
        prefixes.begin((batch_.size + groups_ * batch_.random_rate) * levels);
        const auto add_all = [&](const int32_t* rows, int64_t count, int64_t source) {
            for (int64_t i = 0; i < count; ++i, rows += levels)
                for (int64_t level = 0; level < levels; ++level)
                    if (rows[level] >= levels && own(rows[level]))
                        prefixes.add(rows[level], static_cast<int32_t>(source + i));
        };
        for (int64_t t = 0; t < tiles_; ++t) {
            const Tile tile = tile_at(t);
            add_all(tile.positive, tile.size, t * tile_addresses_);
            add_all(tile.random, tile.groups * batch_.random_rate, t * tile_addresses_ + tile.size);
        }
        prefixes.end();
    }

    template <class Do>
    void each_own_row(int thread, const Do& act) const {
        const int64_t rows = shape_.blocks * shape_.dim, threads = team_.size();
        for (int64_t row = thread * rows / threads; row < (thread + 1) * rows / threads; ++row)
            act(row / shape_.dim, row % shape_.dim);
    }

    // Sum what the threads learnt of the dense parameters, into the first one.
    void add_up(int thread) {
        Share& total = shares_[0];
        each_own_row(thread, [&](int64_t block, int64_t n) {
            const int64_t at = (block * width_ + n) * width_;
            for (std::size_t other = 1; other < shares_.size(); ++other)
                add(total.w.get() + at, shares_[other].w.get() + at);
        });
        if (thread) return;
        for (std::size_t other = 1; other < shares_.size(); ++other) {
            const Share& part = shares_[other];
            for (int64_t k = 0; k < shape_.blocks; ++k) add(total.b.get() + k * width_, part.b.get() + k * width_);
            add(total.typical.get(), part.typical.get());
            for (int64_t level = 0; level < shape_.levels; ++level) {
                add(total.unknown.get() + level * width_, part.unknown.get() + level * width_);
                total.met[level] += part.met[level];
            }
        }
    }

    void apply_dense(int thread, const Update& u) {
        Share& total = shares_[0];
        const int64_t dim = shape_.dim, squares = shape_.blocks * dim * dim, biases = shape_.blocks * dim;
        each_own_row(thread, [&](int64_t block, int64_t n) {
            float* w = p_.w + (block * dim + n) * dim;
            adam(w, squares, total.w.get() + (block * width_ + n) * width_, dim, u.block, u);
            pack(block, n);
        });
        if (thread) return;
        for (int64_t k = 0; k < shape_.blocks; ++k) {
            float* b = p_.b + k * dim;
            adam(b, biases, total.b.get() + k * width_, dim, u.block, u);
        }
        pack_biases();
        adam(p_.typical, dim, total.typical.get(), dim, u.typical, u);
        for (int64_t level = 0; level < shape_.levels; ++level)
            if (total.met[level]) adam_prefix(level, total.unknown.get() + level * width_, total.met[level], u);
    }
    void apply_rows(float* table, const Index& own, const float* gradients, Bench& bench, const Update& u) {
        float* gradient = bench.gradient.zeros(width_);
        const bool prefix = table == p_.prefix;
        const int64_t floats = (prefix ? 1 : 3) * shape_.dim, count = own.rows.size();
        for (int64_t j = 0; j < std::min(AHEAD, count); ++j) ask_for(table + own.rows[j] * floats, floats);
        for (int64_t j = 0; j < count; ++j) {
            if (j + AHEAD < count) ask_for(table + own.rows[j + AHEAD] * floats, floats);
            if (j + AHEAD_SOURCES < count)
                for (int32_t s = own.starts[j + AHEAD_SOURCES]; s < own.starts[j + AHEAD_SOURCES + 1]; ++s)
                    ask_for(gradients + own.sources[s] * width_, shape_.dim);
            add_sources(own, j, gradients, bench, gradient);
            if (prefix) adam_prefix(own.rows[j], gradient, own.starts[j + 1] - own.starts[j], u);
            else adam(table + own.rows[j] * floats, shape_.dim, gradient, shape_.dim, u.entity, u);
        }
    }
    void adam_prefix(int64_t row, const float* gradient, int32_t sources, const Update& u) const {
        const float share = 1 / std::sqrt(std::min<float>(sources, u.most_sources));
        float& square = p_.square[row];
        square += u.square_share * (dot(gradient, gradient, width_) / shape_.learnt - square);
        const float move = share * u.prefix.step / (std::sqrt(square) * u.deviation + u.epsilon);
        const float keep = 1 - share * u.prefix.decay;
        float* __restrict weight = p_.prefix + row * shape_.dim;
        for (int64_t c = 0; c < shape_.dim; ++c) weight[c] = keep * weight[c] - move * gradient[c];
    }
    void add_sources(const Index& own, int64_t j, const float* gradients, Bench& bench, float* to) const {
        const int64_t first = own.starts[j], count = own.starts[j + 1] - first;
        bench.pointers.resize(std::max<std::size_t>(bench.pointers.size(), count));
        for (int64_t s = 0; s < count; ++s) bench.pointers[s] = gradients + own.sources[first + s] * width_;
        sum<false>(to, bench.pointers.data(), nullptr, count, shape_.dim);
    }

    void pack_biases() {
        for (int64_t k = 0; k < shape_.blocks; ++k)
            std::copy_n(p_.b + k * shape_.dim, shape_.dim, biases_.get() + k * width_);
    }
    // Put row n of a block's matrix where `forward` and `backward` read it: as a column and as a row of the product's
    // right side, in panels of PANEL columns.
    void pack(int64_t block, int64_t n) {
        const int64_t dim = shape_.dim;
        const float* w = p_.w + (block * dim + n) * dim;
        float *column = forward_.get() + block * width_ * width_, *row = backward_.get() + block * width_ * width_;
        for (int64_t k = 0; k < dim; ++k) {
            column[n / PANEL * PANEL * width_ + k * PANEL + n % PANEL] = w[k];
            row[k / PANEL * PANEL * width_ + n * PANEL + k % PANEL] = w[k];
        }
    }

    const Shape shape_;
    const Parameters p_;
    const int64_t width_;  // dim, padded
    Team team_;
    std::vector<Bench> benches_;                 // one a thread
    std::vector<Share> shares_;                  // likewise
    Buffer<float> forward_, backward_, biases_;  // the blocks' matrices, packed, and their biases, padded
    Buffer<float> d_entity_, d_address_;  // gradients of each positive's entity, and of each address, tile by tile
    Batch batch_ = {};
    int64_t groups_ = 0, tiles_ = 0, tile_addresses_ = 0;
    int32_t* touches_ = nullptr;
};

}  // namespace

struct Step : Steps {
    using Steps::Steps;
};

#if defined(__x86_64__)
#define BASELINE __attribute__((target("arch=x86-64")))
#else
#define BASELINE
#endif

#ifndef IPINSIGHTS_SOURCES
#define IPINSIGHTS_SOURCES 0
#endif

extern "C" {

// noexcept: all that can be thrown is a lack of memory, and that ends the process.
BASELINE int ipinsights_supported() noexcept {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#else
    return 1;
#endif
}

BASELINE uint32_t ipinsights_sources() noexcept { return IPINSIGHTS_SOURCES; }

void ipinsights_rows(int64_t count, int64_t levels, const int32_t* leaf, const float* drawn, const float* hidden,
                     const int32_t* chains, int32_t* rows) noexcept {
    for (int64_t i = 0; i < count; ++i, rows += levels) {
        if (i + AHEAD < count) {
            __builtin_prefetch(hidden + leaf[i + AHEAD] * levels);
            __builtin_prefetch(chains + leaf[i + AHEAD] * levels);
        }
        const float* hidden_row = hidden + leaf[i] * levels;
        const int32_t* chain = chains + leaf[i] * levels;
        for (int64_t level = 0; level < levels; ++level)
            rows[level] = drawn[i] < hidden_row[level] ? static_cast<int32_t>(level) : chain[level];
    }
}

void ipinsights_moves(int64_t count, int64_t dim, const int64_t* rows, const float* table, const float* base,
                      float* moves) noexcept {
    for (int64_t i = 0; i < count; ++i, moves += dim) {
        if (i + AHEAD < count) {
            ask_for(table + rows[i + AHEAD] * dim, dim);
            ask_for(base + rows[i + AHEAD] * dim, dim);
        }
        const float *now = table + rows[i] * dim, *before = base + rows[i] * dim;
        for (int64_t c = 0; c < dim; ++c) moves[c] = now[c] - before[c];
    }
}

void ipinsights_moved(int64_t count, int64_t dim, const int64_t* rows, const float* moves, const float* scale,
                      float* table, float* base) noexcept {
    for (int64_t i = 0; i < count; ++i, moves += dim) {
        if (i + AHEAD < count) {
            ask_for(table + rows[i + AHEAD] * dim, dim);
            ask_for(base + rows[i + AHEAD] * dim, dim);
        }
        float *now = table + rows[i] * dim, *before = base + rows[i] * dim;
        for (int64_t c = 0; c < dim; ++c) now[c] = before[c] += scale[i] * moves[c];
    }
}

Step* ipinsights_step_new(const Shape* shape, const Parameters* parameters) noexcept {
    return new Step(*shape, *parameters);
}
void ipinsights_step_delete(Step* step) noexcept { delete step; }
void ipinsights_step_pack(Step* step) noexcept { step->pack(); }
void ipinsights_step_count(Step* step, int32_t* touches) noexcept { step->count(touches); }
void ipinsights_step_run(Step* step, const Batch* batch, const Update* update, double* totals) noexcept {
    step->run(*batch, update, totals);
}
int64_t ipinsights_step_touched(const Step* step, bool prefix) noexcept { return step->touched(prefix); }
void ipinsights_step_rows(Step* step, bool prefix, int64_t* rows, int64_t* sources, float* values) noexcept {
    step->collect(prefix, rows, sources, values);
}
void ipinsights_step_dense(const Step* step, float* typical, float* w, float* b) noexcept {
    step->collect(typical, w, b);
}
void ipinsights_step_score(Step* step, int64_t count, const int32_t* entity, const int32_t* prefix,
                           float* scores) noexcept {
    step->score(count, entity, prefix, scores);
}
}
