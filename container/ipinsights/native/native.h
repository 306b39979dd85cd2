// The library's interface: every function that Python calls, with its contract, and every struct that both sides share.
//
// `interface.py` says the same in ctypes' words, and a test compares the two. Arrays belong to the caller, who has made
// sure of their lengths; [n, m] is row after row. No function but those of a Step keeps state, so any number of threads
// may call them side by side.

#pragma once

#include <cstdint>

using std::int32_t;
using std::int64_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

constexpr int64_t NOT_CLEAN = -1;         // `ipinsights_read_...`: the text needs the exact reader
constexpr int64_t UNEQUAL = -1;           // there are not as many lines, or numbers, as rows
constexpr int32_t FREE = -1, TAKEN = -2;  // `ipinsights_find_rows`: no row so far; no row, and none to be had
constexpr uint32_t FORGOTTEN = ~0u;       // the tag of a row whose entity was forgotten, and of no entity

struct Tables;
struct Step;

extern "C" {

// ------------------------------------------------------------------------------------------------------- the library

// Whether this processor can run the library.
int ipinsights_supported() noexcept;

// Which sources the library was compiled from: the digest of `native.sources`, 0 where the compiler was not told.
uint32_t ipinsights_sources() noexcept;

// -------------------------------------------------------------------------------------------------------- reader.cpp

// Reads `size` bytes of whole lines of CSV: of each line that holds a record the entity's digest and the IPv4 address.
// Returns the number of records, or NOT_CLEAN. A record takes 9 bytes and a line end, which the last may lack, so both
// arrays need (size + 1) / 10 places.
int64_t ipinsights_read_lines(const char* text, int64_t size, uint64_t* digests, uint32_t* addresses);

// The same of the instances of a request in JSON, or in JSON Lines. An instance takes 15 bytes at least and, but for the
// last, a separator, so both arrays need size / 16 + 1 places.
int64_t ipinsights_read_instances(const char* text, int64_t size, bool lines, uint64_t* digests, uint32_t* addresses);

// The address of each of n texts, and whether it is a dotted quad. Text i is data[offsets[i]:offsets[i + 1]].
void ipinsights_parse_quads(const uint8_t* data, const int32_t* offsets, int64_t n, uint32_t* addresses, bool* valid);

// xxHash64 of each of n texts.
void ipinsights_hash(const uint8_t* data, const int32_t* offsets, int64_t n, uint64_t* digests);

// The row of each of n entities by the tags of all rows, [num_rows]: FREE if the entity has none and may have one, TAKEN
// if all its `probes` rows are others'. A row with the tag 0 is free. One with the tag FORGOTTEN counts as another's.
void ipinsights_find_rows(const uint32_t* tags, int64_t num_rows, int64_t probes, const uint64_t* digests, int64_t n,
                          int32_t* rows);

// The value of the interval that each of m addresses is in. The n starts ascend from 0.
void ipinsights_find_intervals_32(const uint32_t* starts, int64_t n, const int32_t* values, const uint32_t* queries,
                                  int64_t m, int32_t* found);
void ipinsights_find_intervals_64(const uint64_t* starts, int64_t n, const int32_t* values, const uint64_t* queries,
                                  int64_t m, int32_t* found);

// ------------------------------------------------------------------------------------------------------- scoring.cpp

// scores[i] is the inner product of row rows[i] of `entity` and row leaves[i] of `ip`, both of `dim` columns.
void ipinsights_score(const float* entity, const int32_t* rows, const float* ip, const int32_t* leaves, int64_t dim,
                      int64_t n, float* scores);

// The sums of `each` rows of `table` [., dim], as rows [count, each] lists them: to `sums` [count, dim].
void ipinsights_sum_rows(const float* table, const int32_t* rows, int64_t count, int64_t each, int64_t dim,
                         float* sums);

// Adds row i of `values` [count, dim] to row rows[i] of `sums` [., dim].
void ipinsights_add_rows(const float* values, const int32_t* rows, int64_t count, int64_t dim, float* sums);

// All that it takes to score: entities' rows by `tags`, addresses' by intervals from `starts` on, which are of 64 bits
// if `wide` and else of 32, and both tables. An entity without a row has one that it shares, if `sharing`, or the last.
struct Tables {
    const uint32_t* tags;
    const void* starts;
    const int32_t* values;
    const float* entity;
    const float* ip;
    int64_t num_rows;
    int64_t probes;
    int64_t sharing;
    int64_t wide;
    int64_t intervals;
    int64_t dim;
};

// The score of each of n pairs, and the rows of `entity` and `ip` that it is of. The addresses have the starts' type.
void ipinsights_score_hashed(const Tables* tables, const uint64_t* digests, const void* addresses, int64_t n,
                             float* scores, int32_t* rows, int32_t* leaves);

// Writes each line of `size` bytes of text that is not blank, with a comma, its score as %.9g and a line feed behind it.
// Returns the number of bytes written, or UNEQUAL where there are not n such lines. A line grows by 17 bytes at most.
int64_t ipinsights_append_scores(const char* text, int64_t size, const float* scores, int64_t n, uint8_t* out);

// The numbers of the texts of n rows: places[c] says which of a row's codes, [n, width], and first[c] is added to it.
// Text t is from starts[t] to starts[t + 1]. Returns how many bytes the texts have together.
int64_t ipinsights_number_texts(const int32_t* codes, int64_t n, int64_t width, const int32_t* places,
                                const int32_t* first, int64_t columns, const int64_t* starts, int32_t* numbers);

// Writes n rows: each is a number, of those with commas between them in `size` bytes of text, and then `columns` texts,
// whose numbers are in codes [n, columns]. Text t is from starts[t] to starts[t + 1] in `texts`. Returns the number of
// bytes written, or UNEQUAL where there are not n numbers. Up to PADDING bytes behind the last text are read, and up to
// PADDING behind the last row overwritten.
constexpr int64_t PADDING = 64;
int64_t ipinsights_join(const char* numbers, int64_t size, const int32_t* codes, int64_t n, int64_t columns,
                        const uint8_t* texts, const int64_t* starts, uint8_t* out);

// ---------------------------------------------------------------------------------------------------------- step.cpp

// Of the `dim` coordinates so many have gradients: the others are 0 on both sides of every product.
struct Shape {
    int64_t dim;
    int64_t learnt;
    int64_t levels;
    int64_t blocks;
    int64_t threads;
};

// Each with Adam's means. `entity` is [rows, 3, dim]: weights, mean gradient, mean square. `prefix` is [rows, dim], weights
// alone, and `square` the mean square of each row's gradient, [rows]. The others are [3, ...].
struct Parameters {
    float* entity;
    float* typical;
    float* prefix;
    float* square;
    float* w;
    float* b;
};

// `step.Batch`. There are ceil(size / group) groups, and a tile is a multiple of a group.
struct Batch {
    int64_t size;
    int64_t group;
    int64_t random_rate;
    int64_t shuffled_rate;
    int64_t tile;
    const int32_t* entity;
    const float* novelty;
    const int32_t* positive;
    const int32_t* random;
    const int32_t* partner;
};

// How far a step moves a weight, and the share of the weight that its decay takes.
struct Rate {
    float step;
    float decay;
};

// A prefix row's step and decay are divided by the root of its number of sources, of which `most_sources` count. The
// shares are what comes of this step in the means, 1 - beta1 and 1 - beta2: a difference of the float beta2 from 1 would
// be off by 1e-5 of itself.
struct Update {
    Rate entity;
    Rate prefix;
    Rate typical;
    Rate block;
    float most_sources;
    float mean_share;
    float square_share;
    float deviation;
    float epsilon;
};

// The prefix rows of `count` leaves, [count, levels], with those hidden that chance hides: where a leaf's number between
// 0 and 1 is below the level's in `hidden` [leaves, levels], the level's unknown row, which is the level's number; else
// its row in `chains` [leaves, levels].
void ipinsights_rows(int64_t count, int64_t levels, const int32_t* leaf, const float* drawn, const float* hidden,
                     const int32_t* chains, int32_t* rows) noexcept;

// How far each of some rows of a table [., dim] has moved from `base` [., dim]: to `moves` [count, dim].
void ipinsights_moves(int64_t count, int64_t dim, const int64_t* rows, const float* table, const float* base,
                      float* moves) noexcept;

// The other way round: `base` moves by scale[i] * moves[i], and the table's weights become that.
void ipinsights_moved(int64_t count, int64_t dim, const int64_t* rows, const float* moves, const float* scale,
                      float* table, float* base) noexcept;

// What takes steps on parameters, which stay where they are. The caller deletes it. A lack of memory ends the process.
Step* ipinsights_step_new(const Shape* shape, const Parameters* parameters) noexcept;
void ipinsights_step_delete(Step* step) noexcept;

// The blocks' weights were changed from outside.
void ipinsights_step_pack(Step* step) noexcept;

// From now on, add 1 to `touches` [prefix rows] for each row that a step with an update touches.
void ipinsights_step_count(Step* step, int32_t* touches) noexcept;

// One step; without an update its gradients alone, which stay until the next one. Adds summed cross entropy, records
// classified rightly, and records to the totals [3].
void ipinsights_step_run(Step* step, const Batch* batch, const Update* update, double* totals) noexcept;

// How many rows of a table (that of prefixes, or else that of entities) the last step touched; those rows, [touched],
// with the number and the sum of their gradients, [touched] and [touched, dim]; and the gradients of what is dense.
int64_t ipinsights_step_touched(const Step* step, bool prefix) noexcept;
void ipinsights_step_rows(Step* step, bool prefix, int64_t* rows, int64_t* sources, float* values) noexcept;
void ipinsights_step_dense(const Step* step, float* typical, float* w, float* b) noexcept;

// The score of each of `count` pairs: entity rows [count], prefix rows [count, levels].
void ipinsights_step_score(Step* step, int64_t count, const int32_t* entity, const int32_t* prefix,
                           float* scores) noexcept;
}
