// Scores: the inner product of an entity's row and an address's, for many pairs; and lines of text with their scores.
// And sums of rows, as addresses are encoded.
//
// The rows lie at random places of tables that no cache holds, so what a pair costs is waiting for memory. Its rows are
// asked for a few pairs ahead. A product has sixteen running sums, whatever n, so a pair's score never depends on what
// other pairs there are.
//
// Lines are those of `records.record_lines`, whatever else they hold: what their scores are of is read elsewhere.

#include "native.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace {

constexpr int64_t LANES = 8, AHEAD = 6;
constexpr int64_t LINE = 16;           // floats in a cache line
constexpr int64_t AT_ONCE = 1024;      // pairs whose rows are found before any is scored
constexpr int64_t LONGEST_SCORE = 15;  // -1.23456789e-38

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

bool ends_line(char c) { return c == '\n' || c == '\r'; }

bool is_blank(char c) { return c == ' ' || ('\t' <= c && c <= '\r'); }

// Writes a score as Python's %.9g, which gives NaN no sign. Returns the end of what is written, LONGEST_SCORE bytes at
// most; one more may be overwritten.
char* write_score(float score, char* out) {
    if (std::isnan(score)) score = std::fabs(score);
#ifdef __cpp_lib_to_chars
    return std::to_chars(out, out + LONGEST_SCORE, score, std::chars_format::general, 9).ptr;
#else  // older standard libraries have it for integers alone; this takes three times as long
    return out + std::snprintf(out, LONGEST_SCORE + 1, "%.9g", static_cast<double>(score));
#endif
}

// Copies a text, most often a short one, at once with what is behind it. Returns the end of the text.
uint8_t* append(const uint8_t* text, int64_t size, uint8_t* to) {
    std::memcpy(to, text, PADDING);
    if (size > PADDING) std::memcpy(to + PADDING, text + PADDING, size - PADDING);
    return to + size;
}

}  // namespace

extern "C" {

void ipinsights_sum_rows(const float* table, const int32_t* rows, int64_t count, int64_t each, int64_t dim,
                         float* sums) {
    for (int64_t i = 0; i < count; ++i, rows += each, sums += dim) {
        for (int64_t j = each; i + 1 < count && j < 2 * each; ++j) fetch(table + rows[j] * dim, dim);
        std::fill_n(sums, dim, 0.f);
        for (int64_t j = 0; j < each; ++j) {
            const float* row = table + rows[j] * dim;
            for (int64_t c = 0; c < dim; ++c) sums[c] += row[c];
        }
    }
}

void ipinsights_add_rows(const float* values, const int32_t* rows, int64_t count, int64_t dim, float* sums) {
    for (int64_t i = 0; i < count; ++i, values += dim) {
        if (i + AHEAD < count) fetch(sums + rows[i + AHEAD] * dim, dim);
        float* sum = sums + rows[i] * dim;
        for (int64_t c = 0; c < dim; ++c) sum[c] += values[c];
    }
}

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

void ipinsights_score_hashed(const Tables* t, const uint64_t* digests, const void* addresses, int64_t n, float* scores,
                             int32_t* all_rows, int32_t* all_leaves) {
    for (int64_t start = 0; start < n; start += AT_ONCE) {
        const int64_t count = std::min(AT_ONCE, n - start);
        int32_t* const rows = all_rows + start;
        int32_t* const leaves = all_leaves + start;
        ipinsights_find_rows(t->tags, t->num_rows, t->probes, digests + start, count, rows);
        for (int64_t i = 0; i < count; ++i) {
            if (rows[i] < 0) rows[i] = t->sharing ? digests[start + i] % t->num_rows : t->num_rows;
        }
        if (t->wide) {
            ipinsights_find_intervals_64(static_cast<const uint64_t*>(t->starts), t->intervals, t->values,
                                         static_cast<const uint64_t*>(addresses) + start, count, leaves);
        } else {
            ipinsights_find_intervals_32(static_cast<const uint32_t*>(t->starts), t->intervals, t->values,
                                         static_cast<const uint32_t*>(addresses) + start, count, leaves);
        }
        ipinsights_score(t->entity, rows, t->ip, leaves, t->dim, count, scores + start);
    }
}

int64_t ipinsights_append_scores(const char* text, int64_t size, const float* scores, int64_t n, uint8_t* out) {
    const char* p = text;
    const char* const end = p + size;
    char* const first = reinterpret_cast<char*>(out);
    char* to = first;
    int64_t i = 0;
    while (p < end) {
        while (end - p >= 3 && std::memcmp(p, "\xEF\xBB\xBF", 3) == 0) p += 3;
        const char* const last = std::find_if(p, end, ends_line);
        if (!std::all_of(p, last, is_blank)) {
            if (i == n) return UNEQUAL;
            to = std::copy(p, last, to);
            *to++ = ',';
            to = write_score(scores[i++], to);
            *to++ = '\n';
        }
        p = last == end ? end : last + 1;
    }
    return i == n ? to - first : UNEQUAL;
}

int64_t ipinsights_number_texts(const int32_t* codes, int64_t n, int64_t width, const int32_t* places,
                                const int32_t* first, int64_t columns, const int64_t* starts, int32_t* numbers) {
    int64_t size = 0;
    for (int64_t i = 0; i < n; ++i, codes += width) {
        for (int64_t column = 0; column < columns; ++column) {
            const int32_t text = codes[places[column]] + first[column];
            size += starts[text + 1] - starts[text];
            *numbers++ = text;
        }
    }
    return size;
}

int64_t ipinsights_join(const char* numbers, int64_t size, const int32_t* codes, int64_t n, int64_t columns,
                        const uint8_t* texts, const int64_t* starts, uint8_t* out) {
    const uint8_t* p = reinterpret_cast<const uint8_t*>(numbers);
    const uint8_t* const end = p + size;
    uint8_t* to = out;
    for (int64_t i = 0; i < n; ++i, codes += columns) {
        if (i + AHEAD < n) {
            for (int64_t column = 0; column < columns; ++column) {
                __builtin_prefetch(texts + starts[codes[AHEAD * columns + column]]);
            }
        }
        if (p > end) return UNEQUAL;
        const void* const found = p < end ? std::memchr(p, ',', end - p) : nullptr;
        const uint8_t* const comma = found ? static_cast<const uint8_t*>(found) : end;
        to = end - p < PADDING ? std::copy(p, comma, to) : append(p, comma - p, to);
        p = comma + 1;
        for (int64_t column = 0; column < columns; ++column) {
            const int32_t code = codes[column];
            to = append(texts + starts[code], starts[code + 1] - starts[code], to);
        }
    }
    return p == end + 1 ? to - out : UNEQUAL;
}
}
