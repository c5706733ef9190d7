// Threads within a thread: each has a stack of its own and runs until it hands over.
#ifndef BITIMPL_EMULATOR_FIBER_H
#define BITIMPL_EMULATOR_FIBER_H

#include <stddef.h>
#include <ucontext.h>

namespace bitimpl {
namespace emulator {

class Fiber {
 public:
  Fiber() = default;  // the thread's own, which runs already
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // At the first switch to it the fiber calls entry(context), on a stack of its own. entry ends with a
  // switch that leaves for good; then the fiber may begin again.
  void begin(void (*entry)(void*), void* context);

  // Leaves `from`, which runs, and goes on where `to` left off. for_good: nothing switches to from again.
  static void switch_to(Fiber& from, Fiber& to, bool for_good = false);

 private:
  static void enter();

  void* stack_ = nullptr;  // null: the thread's own
  void (*entry_)(void*) = nullptr;
  void* context_ = nullptr;
  ucontext_t state_;             // where switches are those of the C library
  void* stack_pointer_ = nullptr;  // where they are ours
  // What the address sanitizer keeps of a fiber that is away, and where its stack lies.
  void* shadow_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

}  // namespace emulator
}  // namespace bitimpl

#endif  // BITIMPL_EMULATOR_FIBER_H
