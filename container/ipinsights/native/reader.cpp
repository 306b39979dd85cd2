// From lines of text to rows of tables: what reading events costs, but for the disk.
//
// Six loops, each over arrays that the caller owns; none keeps state, so any number of threads may run them side by side.
//
// Reading. A line is *clean* if it is
//
//     entity "," blank* octet "." octet "." octet "." octet blank* ["," time] (LF | CRLF | end of text)
//
// where a time is YYYY-MM-DDThh:mm:ssZ, which is passed over; the entity is one byte or more of valid UTF-8 without comma, quote, CR or LF, and without a byte order mark at
// its start; blanks are spaces and tabs; an octet is 0 to 255 without a leading zero; and the line, without its end, has
// LONGEST_LINE bytes at most. Such lines, and empty ones, are read in one pass. Whatever else occurs makes it give up: a
// quoted field, a byte order mark, a lone CR, another third column, a port, IPv6, a fault. The caller then has its exact
// reader, which knows all of these and words every error, read the text in place of this one. So this decides nothing:
// it is right if it is right on clean lines and sees that others are not.
//
// Instances of a request, in JSON or JSON Lines, are read likewise: those that are clean, in any of the shapes
//
//     {"features": [entity, address]}    {"data": {"features": {"values": [entity, address]}}}    [entity, address]
//
// with members of other names anywhere, and JSON's blanks, except that an instance of JSON Lines has a line to itself.
// Keys and addresses have no escapes (an entity may), and nothing leads to a pair twice.
//
// Addresses, in lines or in a column of texts. Octets have one, two or three digits at random, and a branch on that
// would be guessed wrong every other time, at some 15 cycles. So the four octets are read without branches. Of four
// bytes w, w ^ "0000" makes digits 0 to
// 9; adding 0x76 to each byte raises the top bit of those above 9; the lowest raised bit tells the number of digits,
// and shifting by it aligns them: units in the highest byte, tens and hundreds below, and zero for what is not there.
// Faults are gathered in one flag. (A carry out of a byte spoils only bytes behind a non-digit.)
//
// Hashing. The entity's digest is xxHash64 with seed 0, after its specification:
// https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
//
// Finding an entity's row. Open addressing with double hashing, as ipinsights/data/entities.py has it and explains; the
// search for one entity ends at a row with its tag, at a free row (it has none yet), or after all its probes. It goes on
// past the rows of others and past those of forgotten entities, which have a tag that no entity has.
//
// Finding an address's interval. Binary search for the last start at or below it, of some addresses side by side: their
// steps are equally many and do not wait for one another, and halves chosen by arithmetic are never mispredicted. That
// is five times as fast as one search after the other.

#include "native.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <string_view>

static_assert(std::endian::native == std::endian::little, "loads are little endian, as xxHash64 wants them");

namespace {

constexpr int64_t LONGEST_QUAD = 15;
constexpr int64_t SIDE_BY_SIDE = 16;
constexpr int64_t LONGEST_NUMBER = 15;
constexpr int64_t TIME_LENGTH = 20;
constexpr int DEEPEST = 8;
constexpr int64_t LONGEST_LINE = 1 << 20;  // as in ipinsights/data/malformed.py

template <typename Word>
Word load(const uint8_t* p) {
    Word word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

// --- xxHash64 ---

constexpr uint64_t P1 = 0x9E3779B185EBCA87, P2 = 0xC2B2AE3D27D4EB4F, P3 = 0x165667B19E3779F9, P4 = 0x85EBCA77C2B2AE63,
                   P5 = 0x27D4EB2F165667C5;

uint64_t round(uint64_t accumulator, uint64_t lane) { return std::rotl(accumulator + lane * P2, 31) * P1; }

uint64_t xxh64(const uint8_t* p, int64_t size) {
    const uint8_t* const end = p + size;
    uint64_t hash = P5;
    if (size >= 32) {
        uint64_t lanes[4] = {P1 + P2, P2, 0, 0 - P1};
        for (; end - p >= 32; p += 32)
            for (int i = 0; i < 4; ++i) lanes[i] = round(lanes[i], load<uint64_t>(p + 8 * i));
        hash = std::rotl(lanes[0], 1) + std::rotl(lanes[1], 7) + std::rotl(lanes[2], 12) + std::rotl(lanes[3], 18);
        for (uint64_t lane : lanes) hash = (hash ^ round(0, lane)) * P1 + P4;
    }
    hash += static_cast<uint64_t>(size);
    for (; end - p >= 8; p += 8) hash = std::rotl(hash ^ round(0, load<uint64_t>(p)), 27) * P1 + P4;
    if (end - p >= 4) {
        hash = std::rotl(hash ^ load<uint32_t>(p) * P1, 23) * P2 + P3;
        p += 4;
    }
    for (; p < end; ++p) hash = std::rotl(hash ^ *p * P5, 11) * P1;
    hash = (hash ^ hash >> 33) * P2;
    hash = (hash ^ hash >> 29) * P3;
    return hash ^ hash >> 32;
}

// --- Lines ---

// The length of the UTF-8 sequence at p, whose first byte is not ASCII; 0 if it is none (RFC 3629, section 4).
int64_t sequence(const uint8_t* p, const uint8_t* end) {
    const auto between = [&](int i, uint8_t low, uint8_t high) { return end - p > i && low <= p[i] && p[i] <= high; };
    const auto tail = [&](int i) { return between(i, 0x80, 0xBF); };
    const uint8_t first = *p;
    if (first >= 0xC2 && first <= 0xDF) return tail(1) ? 2 : 0;
    if (first >= 0xE0 && first <= 0xEF)  // not longer than need be, and no surrogates
        return between(1, first == 0xE0 ? 0xA0 : 0x80, first == 0xED ? 0x9F : 0xBF) && tail(2) ? 3 : 0;
    if (first >= 0xF0 && first <= 0xF4)  // not longer than need be, and at most U+10FFFF
        return between(1, first == 0xF0 ? 0x90 : 0x80, first == 0xF4 ? 0x8F : 0xBF) && tail(2) && tail(3) ? 4 : 0;
    return 0;
}

// Whether a byte order mark is at p.
bool begins_with_mark(const uint8_t* p, const uint8_t* end) {
    return end - p >= 3 && std::memcmp(p, "\xEF\xBB\xBF", 3) == 0;
}

// The end of the entity that begins at p: its comma. Null if what is there is no entity with a comma behind it.
const uint8_t* entity_end(const uint8_t* p, const uint8_t* end) {
    const uint8_t* const begin = p;
    while (p < end) {
        const uint8_t c = *p;
        if (c == ',') return p > begin ? p : nullptr;
        if (c == '"' || c == '\n' || c == '\r') return nullptr;
        const int64_t length = c < 0x80 ? 1 : sequence(p, end);
        if (length == 0 || (c == 0xEF && p == begin && begins_with_mark(p, end))) return nullptr;
        p += length;
    }
    return nullptr;
}

// Reads the dotted quad at p, of which LONGEST_QUAD + 1 bytes can be read. Returns its length; 0 if it is none. A
// fourth digit of the last octet is left to the caller, as is whatever else stands there.
int64_t quad(const uint8_t* const begin, uint32_t& address) {
    const uint8_t* p = begin;
    uint32_t value = 0;
    bool good = true;
    for (int octet = 0; octet < 4; ++octet) {
        const uint32_t word = load<uint32_t>(p), digits = word ^ 0x30303030;
        const uint32_t others = (((digits + 0x76767676) | digits) & 0x80808080) | 0x80000000;  // three digits at most
        const int length = std::countr_zero(others) / 8;
        const uint32_t aligned = digits << 8 << 8 * (3 - length);
        const uint32_t number = (aligned >> 24) + (aligned >> 16 & 255) * 10 + (aligned >> 8 & 255) * 100;
        good &= (length > 0) & (number <= 255) & !((length > 1) & ((digits & 255) == 0));
        value = value << 8 | number;
        p += length;
        if (octet < 3) {
            good &= (word >> 8 * length & 255) == '.';
            ++p;
        }
    }
    address = value;
    return good ? p - begin : 0;
}

// The same where fewer bytes than that may be left: as if zeros followed.
int64_t quad_before(const uint8_t* p, const uint8_t* end, uint32_t& address) {
    if (end - p > LONGEST_QUAD) return quad(p, address);
    uint8_t last[LONGEST_QUAD + 1] = {};
    std::memcpy(last, p, static_cast<size_t>(end - p));
    return quad(last, address);
}

// Whether a time is at p: only the form in which `ipinsights prepare` writes it. A 29 February is left to the caller.
bool is_time(const uint8_t* p, const uint8_t* end) {
    if (end - p < TIME_LENGTH) return false;
    constexpr int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    constexpr std::string_view form = "0000-00-00T00:00:00Z";
    for (size_t i = 0; i < form.size(); ++i)
        if (form[i] == '0' ? p[i] - '0' > 9u : p[i] != form[i]) return false;
    const auto two = [p](int at) { return (p[at] - '0') * 10 + (p[at + 1] - '0'); };
    const auto within = [](int value, int low, int high) { return low <= value && value <= high; };
    const int year = two(0) * 100 + two(2), month = two(5), day = two(8);
    return within(year, 1700, 2199) && within(month, 1, 12) && within(day, 1, days[month - 1]) &&
           within(two(11), 0, 23) && within(two(14), 0, 59) && within(two(17), 0, 59);
}

// --- Instances ---

// Four hexadecimal digits; -1 if they are none.
int32_t hexadecimal(const uint8_t* p, const uint8_t* end) {
    if (end - p < 4) return -1;
    int32_t value = 0;
    for (int i = 0; i < 4; ++i) {
        const uint8_t c = p[i], lower = c | 32;
        const int digit = c >= '0' && c <= '9' ? c - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

// The length of the escape at p, whose first byte is the backslash; 0 if it is none. Appends what it stands for, in
// UTF-8, to `out`, if there is one.
__attribute__((noinline)) int64_t escape(const uint8_t* p, const uint8_t* end, std::string* out) {
    if (end - p < 2) return 0;
    if (p[1] != 'u') {
        constexpr std::string_view names = "\"\\/bfnrt", values = "\"\\/\b\f\n\r\t";
        const size_t i = names.find(static_cast<char>(p[1]));
        if (i == names.npos) return 0;
        if (out) *out += values[i];
        return 2;
    }
    int32_t code = hexadecimal(p + 2, end);
    int64_t length = 6;
    if (code < 0 || (code >= 0xDC00 && code <= 0xDFFF)) return 0;
    if (code >= 0xD800 && code <= 0xDBFF) {  // the first half of a pair
        const bool another = end - p >= 12 && p[6] == '\\' && p[7] == 'u';
        const int32_t second = another ? hexadecimal(p + 8, end) : -1;
        if (second < 0xDC00 || second > 0xDFFF) return 0;
        code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
        length = 12;
    }
    if (out) {
        const auto put = [&](int32_t byte) { *out += static_cast<char>(byte); };
        if (code < 0x80) {
            put(code);
        } else {
            const int tails = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
            put((0xF00 >> (tails + 1) & 0xFF) | code >> 6 * tails);
            for (int i = tails - 1; i >= 0; --i) put(0x80 | (code >> 6 * i & 0x3F));
        }
    }
    return length;
}

uint64_t digest_of(std::string_view text) {
    return xxh64(reinterpret_cast<const uint8_t*>(text.data()), static_cast<int64_t>(text.size()));
}

// Of a text with valid escapes.
__attribute__((noinline)) uint64_t digest_without_escapes(std::string_view text) {
    std::string without;
    const auto* p = reinterpret_cast<const uint8_t*>(text.data());
    for (const auto* const end = p + text.size(); p < end;) {
        if (*p == '\\') p += escape(p, end, &without);
        else without += static_cast<char>(*p++);
    }
    return digest_of(without);
}

// Reads clean JSON from p on. Each step moves p behind what it has read, or says that something else is there.
struct Json {
    const uint8_t* p;
    const uint8_t* const end;
    const bool lines;  // so that a line's end is no blank

    void blanks() {
        while (p < end && (*p == ' ' || *p == '\t' || *p == '\r' || (!lines && *p == '\n'))) ++p;
    }

    bool token(char c) {
        blanks();
        return p < end && *p == static_cast<uint8_t>(c) && ++p;
    }

    // A string, and whether it has escapes, which are left in it.
    bool string(std::string_view& text, bool& escaped) {
        if (!token('"')) return false;
        const uint8_t* const begin = p;
        escaped = false;
        while (p < end && *p != '"') {
            if (*p < ' ') return false;
            int64_t length = 1;
            if (*p == '\\') {
                escaped = true;
                length = escape(p, end, nullptr);
            } else if (*p >= 0x80) {
                length = sequence(p, end);
            }
            if (length == 0) return false;
            p += length;
        }
        text = {reinterpret_cast<const char*>(begin), static_cast<size_t>(p - begin)};
        return p < end && ++p;
    }

    bool plain(std::string_view& text) {
        bool escaped;
        return string(text, escaped) && !escaped;
    }

    bool key(std::string_view name) {
        std::string_view found;
        return plain(found) && found == name && token(':');
    }

    bool pair(uint64_t& digest, uint32_t& address) {
        std::string_view entity, text;
        bool escaped;
        if (!token('[') || !string(entity, escaped) || !token(',') || !plain(text) || !token(']')) return false;
        while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
        while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
        digest = escaped ? digest_without_escapes(entity) : digest_of(entity);
        const auto* const first = reinterpret_cast<const uint8_t*>(text.data());
        const auto size = static_cast<int64_t>(text.size());
        return !entity.empty() && size > 0 && quad_before(first, first + size, address) == size;
    }

    // A value of no concern. Numbers that a double may not hold are left to the caller.
    bool skip(int depth = 0) {
        blanks();
        if (p == end || depth > DEEPEST) return false;
        std::string_view text;
        bool escaped;
        if (*p == '"') return string(text, escaped);
        if (*p == '[') {
            ++p;
            if (token(']')) return true;
            do {
                if (!skip(depth + 1)) return false;
            } while (token(','));
            return token(']');
        }
        if (*p == '{') {
            ++p;
            if (token('}')) return true;
            do {
                if (!string(text, escaped) || !token(':') || !skip(depth + 1)) return false;
            } while (token(','));
            return token('}');
        }
        for (const std::string_view word : {"true", "false", "null"}) {
            if (static_cast<size_t>(end - p) >= word.size() && std::memcmp(p, word.data(), word.size()) == 0) {
                p += word.size();
                return true;
            }
        }
        return number();
    }

    bool number() {
        const uint8_t* const begin = p;
        const auto digits = [&] {
            const uint8_t* const first = p;
            while (p < end && *p >= '0' && *p <= '9') ++p;
            return p - first;
        };
        if (p < end && *p == '-') ++p;
        const bool zero = p < end && *p == '0';
        const int64_t whole = digits();
        if (whole == 0 || (zero && whole > 1)) return false;
        if (p < end && *p == '.' && (++p, digits() == 0)) return false;
        return p - begin <= LONGEST_NUMBER && !(p < end && (*p == 'e' || *p == 'E'));
    }

    // The members of an object, behind its brace. One of them leads to the pair: of an instance "features", or "data"
    // if there are none; of data "features"; of these "values". What may lead there otherwise is left to the caller.
    enum Level { INSTANCE, DATA, FEATURES };

    bool members(Level level, uint64_t& digest, uint32_t& address) {
        bool found = false, data = false;
        uint64_t other_digest = 0;
        uint32_t other_address = 0;
        do {
            std::string_view name;
            if (!plain(name) || !token(':')) return false;
            blanks();
            const bool list = p < end && *p == '[', object = p < end && *p == '{';
            if (level == INSTANCE && name == "data" && object) {
                if (data || !(++p, members(DATA, other_digest, other_address))) return false;
                data = true;
            } else if (name == (level == FEATURES ? "values" : "features")) {
                if (found) return false;
                if (level == DATA && object) {
                    if (!(++p, members(FEATURES, digest, address))) return false;
                } else if (!list || !pair(digest, address)) {
                    return false;
                }
                found = true;
            } else if (name == "values" || (level != INSTANCE && (name == "data" || name == "features")) ||
                       (name == "data" && data)) {
                return false;
            } else if (!skip()) {
                return false;
            }
        } while (token(','));
        if (!found && data) {
            digest = other_digest;
            address = other_address;
        }
        return (found || data) && token('}');
    }

    bool instance(uint64_t& digest, uint32_t& address) {
        blanks();
        if (p < end && *p == '[') return pair(digest, address);
        if (!token('{')) return false;
        const uint8_t* const begin = p;  // the usual instance has nothing else
        if (key("features") && pair(digest, address) && token('}')) return true;
        p = begin;
        return members(INSTANCE, digest, address);
    }
};

template <typename Address>
void find_intervals(const Address* starts, int64_t n, const int32_t* values, const Address* queries, int64_t m,
                    int32_t* found) {
    for (int64_t i = 0; i < m; i += SIDE_BY_SIDE) {
        int64_t at[SIDE_BY_SIDE] = {};
        Address query[SIDE_BY_SIDE];
        for (int64_t k = 0; k < SIDE_BY_SIDE; ++k) query[k] = queries[std::min(i + k, m - 1)];
        for (int64_t size = n; size > 1; size -= size / 2)
            for (int64_t k = 0; k < SIDE_BY_SIDE; ++k) at[k] += starts[at[k] + size / 2] <= query[k] ? size / 2 : 0;
        for (int64_t k = 0; k < std::min(SIDE_BY_SIDE, m - i); ++k) found[i + k] = values[at[k]];
    }
}

}  // namespace

extern "C" {

int64_t ipinsights_read_lines(const char* text, int64_t size, uint64_t* digests, uint32_t* addresses) {
    const auto* p = reinterpret_cast<const uint8_t*>(text);
    const uint8_t* const end = p + size;
    int64_t n = 0;
    while (p < end) {
        if (*p != '\n' && *p != '\r') {
            const uint8_t* const comma = entity_end(p, end);
            if (comma == nullptr) return NOT_CLEAN;
            const uint8_t* const entity = p;
            p = comma + 1;
            while (p < end && (*p == ' ' || *p == '\t')) ++p;
            uint32_t address;
            const int64_t length = quad_before(p, end, address);
            if (length == 0) return NOT_CLEAN;
            p += length;
            digests[n] = xxh64(entity, comma - entity);
            addresses[n++] = address;
            while (p < end && (*p == ' ' || *p == '\t')) ++p;
            if (p < end && *p == ',') {
                if (!is_time(p + 1, end)) return NOT_CLEAN;
                p += 1 + TIME_LENGTH;
            }
            if (p - entity > LONGEST_LINE) return NOT_CLEAN;
            if (p == end) break;
        }
        if (*p == '\r' && ++p == end) return NOT_CLEAN;
        if (*p++ != '\n') return NOT_CLEAN;
    }
    return n;
}

int64_t ipinsights_read_instances(const char* text, int64_t size, bool lines, uint64_t* digests, uint32_t* addresses) {
    const auto* const p = reinterpret_cast<const uint8_t*>(text);
    Json json{p, p + size, lines};
    int64_t n = 0;
    if (lines) {
        const uint8_t* begin = p;
        for (json.blanks(); json.p < json.end; json.blanks()) {
            if (*json.p != '\n') {
                if (!json.instance(digests[n], addresses[n])) return NOT_CLEAN;
                ++n;
                json.blanks();
                if (json.p < json.end && *json.p != '\n') return NOT_CLEAN;
                if (json.p - begin > LONGEST_LINE) return NOT_CLEAN;
            } else {
                begin = ++json.p;
            }
        }
        return n;
    }
    if (!json.token('{') || !json.key("instances") || !json.token('[')) return NOT_CLEAN;
    if (!json.token(']')) {
        do {
            if (!json.instance(digests[n], addresses[n])) return NOT_CLEAN;
            ++n;
        } while (json.token(','));
        if (!json.token(']')) return NOT_CLEAN;
    }
    if (!json.token('}')) return NOT_CLEAN;
    json.blanks();
    return json.p == json.end ? n : NOT_CLEAN;
}

void ipinsights_parse_quads(const uint8_t* data, const int32_t* offsets, int64_t n, uint32_t* addresses, bool* valid) {
    for (int64_t i = 0; i < n; ++i) {
        const int64_t size = offsets[i + 1] - offsets[i];
        uint8_t text[LONGEST_QUAD + 1] = {};  // what follows in `data` must not be read as another digit
        if (size <= LONGEST_QUAD) std::memcpy(text, data + offsets[i], static_cast<size_t>(size));
        const int64_t length = quad(text, addresses[i]);
        valid[i] = length > 0 && length == size;
        if (!valid[i]) addresses[i] = 0;
    }
}

void ipinsights_hash(const uint8_t* data, const int32_t* offsets, int64_t n, uint64_t* digests) {
    for (int64_t i = 0; i < n; ++i) digests[i] = xxh64(data + offsets[i], offsets[i + 1] - offsets[i]);
}

void ipinsights_find_rows(const uint32_t* tags, int64_t num_rows, int64_t probes, const uint64_t* digests, int64_t n,
                          int32_t* rows) {
    const uint64_t size = static_cast<uint64_t>(num_rows);
    const bool small = num_rows <= probes;
    const uint64_t limit = static_cast<uint64_t>(std::min(num_rows, probes));
    for (int64_t i = 0; i < n; ++i) {
        const uint64_t tag = std::clamp<uint64_t>(digests[i] >> 32, 1, FORGOTTEN - 1);
        uint64_t at = digests[i] % size;
        rows[i] = TAKEN;
        for (uint64_t probe = 0; probe < limit; ++probe) {
            if (tags[at] == tag || tags[at] == 0) {
                rows[i] = tags[at] == 0 ? FREE : static_cast<int32_t>(at);
                break;
            }
            at = (at + (small ? 1 : tag + probe)) % size;
        }
    }
}

void ipinsights_find_intervals_32(const uint32_t* starts, int64_t n, const int32_t* values, const uint32_t* queries,
                                  int64_t m, int32_t* found) {
    find_intervals(starts, n, values, queries, m, found);
}

void ipinsights_find_intervals_64(const uint64_t* starts, int64_t n, const int32_t* values, const uint64_t* queries,
                                  int64_t m, int32_t* found) {
    find_intervals(starts, n, values, queries, m, found);
}
}
