// A fuzzer guided by coverage, for compilers without libFuzzer: g++ calls `__sanitizer_cov_trace_pc` at each branch.
//
//     readers -max_total_time=60 FOLDER    # changes the inputs in FOLDER, and those that then reach new branches
//     readers FILE...                      # runs each input once
//
// These are libFuzzer's options, so either may be linked. An input that ends the process is left in `crash-input`.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" void __sanitizer_set_death_callback(void (*callback)());

namespace {

using Text = std::vector<uint8_t>;

constexpr size_t PLACES = 1 << 16, LONGEST = 512;
uint8_t hits[PLACES], seen[PLACES];
uint16_t touched[PLACES];  // the places that are not 0 in `hits`
size_t touches = 0;
uintptr_t before = 0;

// How often a branch was taken, as a bit: 1, 2, 3, 4 to 7, 8 to 15 and so on are different behaviour.
uint8_t often(uint8_t count) {
    uint8_t bit = 0;
    for (int limit : {1, 2, 3, 7, 15, 31, 127}) bit = static_cast<uint8_t>(bit + (count > limit));
    return static_cast<uint8_t>(count ? 1 << bit : 0);
}

// Runs an input. Returns whether it reached something new.
bool run(const Text& text) {
    before = touches = 0;
    LLVMFuzzerTestOneInput(text.data(), text.size());
    bool found = false;
    for (size_t i = 0; i < touches; ++i) {
        const uint8_t bit = often(hits[touched[i]]);
        found |= (bit & ~seen[touched[i]]) != 0;
        seen[touched[i]] |= bit;
        hits[touched[i]] = 0;
    }
    return found;
}

Text read(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return Text(std::istreambuf_iterator<char>(file), {});
}

class Mutator {
  public:
    explicit Mutator(uint64_t seed) : random_(seed) {}

    size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }

    Text mutant(const std::vector<Text>& corpus) {
        Text text = corpus[below(corpus.size())];
        for (size_t changes = below(4) + 1; changes; --changes) change(text, corpus[below(corpus.size())]);
        if (text.size() > LONGEST) text.resize(LONGEST);
        return text;
    }

  private:
    void change(Text& text, const Text& other) {
        static const char* const words[] = {",",
                                            "\"",
                                            "\\",
                                            "\n",
                                            "\r\n",
                                            "\xEF\xBB\xBF",
                                            "255.",
                                            "1.2.3.4",
                                            "{",
                                            "}",
                                            "[",
                                            "]",
                                            ":",
                                            "\"features\"",
                                            "\\u",
                                            "\xF0\x9F\x98\x80",
                                            "-1",
                                            "\t",
                                            "e9",
                                            "\"data\"",
                                            "\"values\"",
                                            "{\"instances\":[",
                                            "2026-01-02T03:04:05Z"};
        const size_t at = text.empty() ? 0 : below(text.size());
        const auto place = text.begin() + static_cast<std::ptrdiff_t>(at);
        const size_t length = below(8) + 1, end = std::min(text.size(), at + length);
        switch (below(6)) {
            case 0:
                if (!text.empty()) text[at] ^= static_cast<uint8_t>(1 << below(8));
                return;
            case 1:
                if (!text.empty()) text[at] = static_cast<uint8_t>(below(256));
                return;
            case 2: text.erase(place, text.begin() + static_cast<std::ptrdiff_t>(end)); return;
            case 3: {
                const Text piece(place, text.begin() + static_cast<std::ptrdiff_t>(end));
                text.insert(place, piece.begin(), piece.end());
                return;
            }
            case 4: {
                const char* const word = words[below(std::size(words))];
                text.insert(place, word, word + std::strlen(word));
                return;
            }
            default: {
                if (other.empty()) return;
                const size_t from = below(other.size());
                text.resize(at);
                text.insert(text.end(), other.begin() + static_cast<std::ptrdiff_t>(from), other.end());
            }
        }
    }

    std::mt19937_64 random_;
};

// The input that runs; it is written to a file if a sanitizer ends the process.
Text current;

void leave() {
    std::ofstream("crash-input", std::ios::binary)
        .write(reinterpret_cast<const char*>(current.data()), static_cast<std::streamsize>(current.size()));
}

int fuzz(const std::filesystem::path& folder, double seconds) {
    std::vector<Text> corpus;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) corpus.push_back(read(entry.path()));
    if (corpus.empty()) corpus.emplace_back();
    __sanitizer_set_death_callback(leave);
    for (Text& text : corpus) {
        if (text.size() > LONGEST) text.resize(LONGEST);
        current = text;
        run(current);
    }
    Mutator mutator(std::random_device{}());
    const auto began = std::chrono::steady_clock::now();
    const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count(); };
    uint64_t inputs = 0;
    for (; inputs % 256 || passed() < seconds; ++inputs) {
        current = mutator.mutant(corpus);
        if (run(current)) corpus.push_back(current);
    }
    std::printf("Done %llu runs, %zu inputs kept\n", static_cast<unsigned long long>(inputs), corpus.size());
    return 0;
}

}  // namespace

extern "C" void __sanitizer_cov_trace_pc() {
    const auto here = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
    const auto place = static_cast<uint16_t>(here ^ before * 31);
    if (!hits[place]) touched[touches++] = place;
    hits[place] = static_cast<uint8_t>(hits[place] + (hits[place] < 255));
    before = here >> 1;
}

int main(int argc, char** argv) {
    const std::string limit = "-max_total_time=";
    double seconds = 0;
    std::vector<std::filesystem::path> paths;
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i];
        if (argument.rfind(limit, 0) == 0) seconds = std::atof(argument.c_str() + limit.size());
        else if (argument[0] != '-') paths.emplace_back(argument);
    }
    if (seconds > 0) return fuzz(paths.at(0), seconds);
    for (const auto& path : paths) run(read(path));
    return 0;
}
