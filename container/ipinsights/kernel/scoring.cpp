// Scores: the inner product of an entity's row and an address's, for many pairs.
//
// The rows lie at random places of tables that no cache holds, so what a pair costs is waiting for memory. Its rows are
// asked for a few pairs ahead. A product has sixteen running sums, whatever n, so a pair's score never depends on what
// other pairs there are.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t LANES = 8, AHEAD = 6;
constexpr int64_t LINE = 16;  // floats in a cache line

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

Vector load(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

float product(const float* a, const float* b, int64_t dim) {
    Vector one = {}, other = {};
    int64_t i = 0;
    for (; i + 2 * LANES <= dim; i += 2 * LANES) {
        one += load(a + i) * load(b + i);
        other += load(a + i + LANES) * load(b + i + LANES);
    }
    one += other;
    float sum = 0;
    for (int64_t lane = 0; lane < LANES; ++lane) sum += one[lane];
    for (; i < dim; ++i) sum += a[i] * b[i];
    return sum;
}

void fetch(const float* row, int64_t dim) {
    for (int64_t i = 0; i < dim; i += LINE) __builtin_prefetch(row + i);
}

}  // namespace

extern "C" {

// scores[i] is the product of row rows[i] of `entity` and row leaves[i] of `ip`, both of `dim` columns.
void ipinsights_score(const float* entity, const int32_t* rows, const float* ip, const int32_t* leaves, int64_t dim,
                      int64_t n, float* scores) {
    for (int64_t i = 0; i < n; ++i) {
        if (i + AHEAD < n) {
            fetch(entity + rows[i + AHEAD] * dim, dim);
            fetch(ip + leaves[i + AHEAD] * dim, dim);
        }
        scores[i] = product(entity + rows[i] * dim, ip + leaves[i] * dim, dim);
    }
}
}
