// What fuzzing calls of the native library: each input is a byte that chooses a function, and what the function reads.
//
// Every array has just the size that `native.h` promises, and is memory of its own, so that the address sanitizer sees a
// byte too many. Results are right if the tests of properties say so; here it counts that nothing is read or written
// that is not there, and what the readers promise of their results' sizes.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../../container/ipinsights/native/native.h"

namespace {

// An array of its own, filled from the input as far as that reaches, and then with zeros.
template <typename T>
class Array {
  public:
    explicit Array(int64_t size) : size_(size), data_(new T[static_cast<size_t>(size)]()) {}
    T* get() { return data_.get(); }
    T& operator[](int64_t i) { return data_[static_cast<size_t>(i)]; }
    int64_t size() const { return size_; }

  private:
    int64_t size_;
    std::unique_ptr<T[]> data_;
};

class Input {
  public:
    Input(const uint8_t* data, int64_t size) : data_(data), left_(size) {}
    int64_t left() const { return left_; }
    uint8_t byte() { return array<uint8_t>(1)[0]; }
    template <typename T>
    Array<T> array(int64_t size) {
        Array<T> found(size);
        const int64_t bytes = std::min<int64_t>(left_, size * static_cast<int64_t>(sizeof(T)));
        if (bytes) std::memcpy(found.get(), data_, static_cast<size_t>(bytes));
        data_ += bytes;
        left_ -= bytes;
        return found;
    }

  private:
    const uint8_t* data_;
    int64_t left_;
};

void require(bool holds) {
    if (!holds) std::abort();
}

void lines(Input input) {
    auto text = input.array<char>(input.left());
    const int64_t most = (text.size() + 1) / 10;
    Array<uint64_t> digests(most);
    Array<uint32_t> addresses(most);
    const int64_t n = ipinsights_read_lines(text.get(), text.size(), digests.get(), addresses.get());
    require(NOT_CLEAN <= n && n <= most);
}

void instances(Input input, bool by_lines) {
    auto text = input.array<char>(input.left());
    const int64_t most = text.size() / 16 + 1;
    Array<uint64_t> digests(most);
    Array<uint32_t> addresses(most);
    const int64_t n = ipinsights_read_instances(text.get(), text.size(), by_lines, digests.get(), addresses.get());
    require(NOT_CLEAN <= n && n <= most);
}

// Texts of a column: where each begins, and their bytes.
void texts(Input input) {
    const int64_t n = input.byte() % 9;
    auto lengths = input.array<uint8_t>(n);
    auto data = input.array<uint8_t>(input.left());
    Array<int32_t> offsets(n + 1);
    for (int64_t i = 0; i < n; ++i)
        offsets[i + 1] = static_cast<int32_t>(std::min<int64_t>(data.size(), offsets[i] + lengths[i]));
    Array<uint32_t> addresses(n);
    Array<bool> valid(n);
    Array<uint64_t> digests(n);
    ipinsights_parse_quads(data.get(), offsets.get(), n, addresses.get(), valid.get());
    ipinsights_hash(data.get(), offsets.get(), n, digests.get());
}

template <typename Address>
void tables(Input input, bool wide) {
    const int64_t rows = input.byte() % 20 + 1, probes = input.byte() % 20 + 1, intervals = input.byte() % 20 + 1;
    const int64_t dim = input.byte() % 40 + 1, n = input.byte() % 40, sharing = input.byte() % 2;
    auto tags = input.array<uint32_t>(rows);
    auto starts = input.array<Address>(intervals);
    std::sort(starts.get(), starts.get() + intervals);
    starts[0] = 0;
    auto digests = input.array<uint64_t>(n);
    auto queries = input.array<Address>(n);
    Array<int32_t> found(n), values(intervals);
    for (int64_t i = 0; i < intervals; ++i) values[i] = static_cast<int32_t>(i);
    ipinsights_find_rows(tags.get(), rows, probes, digests.get(), n, found.get());
    for (int64_t i = 0; i < n; ++i) require(TAKEN <= found[i] && found[i] < rows);
    if constexpr (sizeof(Address) == 4)
        ipinsights_find_intervals_32(starts.get(), intervals, values.get(), queries.get(), n, found.get());
    else ipinsights_find_intervals_64(starts.get(), intervals, values.get(), queries.get(), n, found.get());
    for (int64_t i = 0; i < n; ++i) {
        require(0 <= found[i] && found[i] < intervals && starts[found[i]] <= queries[i]);
        require(found[i] + 1 == intervals || queries[i] < starts[found[i] + 1]);
    }
    Array<float> entity((rows + 1) * dim), ip(intervals * dim), scores(n);
    const Tables all{tags.get(), starts.get(), values.get(), entity.get(), ip.get(), rows,
                     probes,     sharing,      wide,         intervals,    dim};
    Array<int32_t> of(n), leaves(n);
    ipinsights_score_hashed(&all, digests.get(), queries.get(), n, scores.get(), of.get(), leaves.get());
    for (int64_t i = 0; i < n; ++i) require(0 <= of[i] && of[i] <= rows && leaves[i] < intervals);
}

void append(Input input) {
    const int64_t n = input.byte() % 9;
    auto scores = input.array<float>(n);
    auto text = input.array<char>(input.left());
    Array<uint8_t> out(text.size() + 17 * n);
    const int64_t size = ipinsights_append_scores(text.get(), text.size(), scores.get(), n, out.get());
    require(UNEQUAL <= size && size <= out.size());
}

void join(Input input) {
    const int64_t n = input.byte() % 9, columns = input.byte() % 4 + 1;
    auto lengths = input.array<uint8_t>(4);
    Array<int64_t> starts(5);
    for (int64_t i = 0; i < 4; ++i) starts[i + 1] = starts[i] + lengths[i] % 30;
    auto given = input.array<uint8_t>(starts[4]);
    Array<uint8_t> texts(given.size() + PADDING);
    std::copy(given.get(), given.get() + given.size(), texts.get());
    auto choices = input.array<uint8_t>(n * columns);
    Array<int32_t> codes(n * columns);
    int64_t most = 0;
    for (int64_t i = 0; i < n * columns; ++i) {
        codes[i] = choices[i] % 4;
        most += starts[codes[i] + 1] - starts[codes[i]];
    }
    auto numbers = input.array<char>(input.left());
    Array<uint8_t> out(most + numbers.size() + PADDING);
    const int64_t size =
        ipinsights_join(numbers.get(), numbers.size(), codes.get(), n, columns, texts.get(), starts.get(), out.get());
    require(UNEQUAL <= size && size <= most + numbers.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size == 0) return 0;
    const Input rest(data + 1, static_cast<int64_t>(size) - 1);
    switch (data[0]) {
        case 'c': lines(rest); break;
        case 'j': instances(rest, false); break;
        case 'l': instances(rest, true); break;
        case 't': texts(rest); break;
        case '4': tables<uint32_t>(rest, false); break;
        case '6': tables<uint64_t>(rest, true); break;
        case 'a': append(rest); break;
        case 'o': join(rest); break;
        default: return -1;
    }
    return 0;
}
