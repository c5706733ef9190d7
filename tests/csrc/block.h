// Memory of exactly the size asked for, for the programs that run the library outside of Python: heap
// blocks, where the address sanitizer watches them, or pages of their own between two pages without
// access, where the processor does. A fault ends the program with a message that names the case, the
// block and the place.
#ifndef BLOCK_H
#define BLOCK_H

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

enum class Placement {
  kHeap,
  kBehind,   // the block ends where a page without access begins
  kInFront,  // the block begins where one ends
};
inline Placement placement = Placement::kHeap;

// What a fault is reported with: the case at work, and the instruction set.
inline char progress[1024] = "";
inline void announce(const std::string& line, const std::string& isa) {
  std::snprintf(progress, sizeof progress, "case \"%s\", %s", line.c_str(), isa.c_str());
}

[[noreturn]] inline void block_failure(const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", progress, what.c_str());
  std::fflush(stderr);
  _exit(1);
}

// The blocks between guard pages that exist now.
struct Mapping {
  uint8_t* base;
  size_t mapped;
  uint8_t* data;
  size_t bytes;
  const char* name;
};
inline Mapping mappings[64] = {};

class Block {
 public:
  size_t bytes;

  Block(int64_t size, const char* name) : bytes(static_cast<size_t>(size)) {
    if (placement == Placement::kHeap) {
      data_ = new uint8_t[bytes];
    } else {
      map(name);
    }
    std::memset(data_, 0xFF, bytes);
  }
  Block(Block&& other) noexcept
      : bytes(other.bytes), data_(std::exchange(other.data_, nullptr)), mapping_(other.mapping_) {}
  Block& operator=(Block&&) = delete;
  ~Block() {
    if (data_ == nullptr) return;
    if (mapping_ == nullptr) {
      delete[] data_;
      return;
    }
    check_slack();
    munmap(mapping_->base, mapping_->mapped);
    *mapping_ = {};
  }

  uint8_t* data() const { return data_; }

  // From now on the block may be read only: the library does not write into what it is given const.
  void seal() const {
    if (mapping_ == nullptr || bytes == 0) return;
    if (mprotect(usable(), mapping_->mapped - 2 * page(), PROT_READ) != 0)
      block_failure("cannot protect " + std::string(mapping_->name));
  }

 private:
  static constexpr uint8_t kUntouched = 0xA5;
  uint8_t* data_ = nullptr;
  Mapping* mapping_ = nullptr;

  static size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
  uint8_t* usable() const { return mapping_->base + page(); }

  void map(const char* name) {
    for (Mapping& mapping : mappings) {
      if (mapping.base == nullptr) mapping_ = &mapping;
    }
    if (mapping_ == nullptr) block_failure("too many blocks at once");
    const size_t whole = (bytes + page() - 1) / page() * page();
    void* memory = mmap(nullptr, whole + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) block_failure("no memory");
    uint8_t* base = static_cast<uint8_t*>(memory);
    // Emulators refuse to protect nothing at all.
    if (whole > 0 && mprotect(base + page(), whole, PROT_READ | PROT_WRITE) != 0)
      block_failure("cannot protect a page");
    data_ = base + page() + (placement == Placement::kBehind ? whole - bytes : 0);
    *mapping_ = {base, whole + 2 * page(), data_, bytes, name};
    std::memset(usable(), kUntouched, static_cast<size_t>(data_ - usable()));
    std::memset(data_ + bytes, kUntouched, whole - bytes - static_cast<size_t>(data_ - usable()));
  }

  // What lies between the block and the far guard page can be read unseen, but not written.
  void check_slack() const {
    const uint8_t* end = mapping_->base + mapping_->mapped - page();
    for (const uint8_t* at = usable(); at < end; ++at) {
      if (at == data_) at += bytes;
      if (at == end) break;
      if (*at != kUntouched)
        block_failure(std::string(mapping_->name) + " was written outside: " + place(*mapping_, at));
    }
  }

 public:
  // Where `at` lies, in words.
  static std::string place(const Mapping& mapping, const uint8_t* at) {
    const std::string of = " of its " + std::to_string(mapping.bytes) + " bytes";
    if (at < mapping.data) return std::to_string(mapping.data - at) + " bytes before the begin" + of;
    const uint8_t* end = mapping.data + mapping.bytes;
    if (at >= end) return std::to_string(at - end) + " bytes past the end" + of;
    return "byte " + std::to_string(at - mapping.data) + of;
  }
};

// Says what a fault hit, and ends the program.
inline void report_fault(int number, siginfo_t* info, void*) {
  const uint8_t* at = static_cast<const uint8_t*>(info->si_addr);
  for (const Mapping& mapping : mappings) {
    if (mapping.base == nullptr || at < mapping.base || at >= mapping.base + mapping.mapped) continue;
    const bool inside = at >= mapping.data && at < mapping.data + mapping.bytes;
    block_failure(std::string(mapping.name) + (inside ? " may not be written: " : " was accessed outside: ") +
                  Block::place(mapping, at));
  }
  block_failure("signal " + std::to_string(number) + " outside of every block");
}

// Blocks lie between guard pages from now on.
inline void use_guard_pages(Placement where) {
  placement = where;
  struct sigaction action = {};
  action.sa_sigaction = report_fault;
  action.sa_flags = SA_SIGINFO;
  for (int number : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) sigaction(number, &action, nullptr);
}

#endif  // BLOCK_H
