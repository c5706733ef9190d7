#include "fiber.h"

#include <stdint.h>
#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace bitimpl {
namespace emulator {
namespace {

constexpr size_t kStack = 256 * 1024;

Fiber* arriving = nullptr;
[[maybe_unused]] Fiber* leaving = nullptr;

}  // namespace

#if defined(__x86_64__)
// Switches of the C library save the signal mask with a system call, which costs ten times the rest.
// This one keeps what a called function must keep: six registers and the stack pointer.
extern "C" void bitimpl_emulator_switch(void** save, void* load);
asm(R"(
.text
.type bitimpl_emulator_switch, @function
.hidden bitimpl_emulator_switch
bitimpl_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size bitimpl_emulator_switch, .-bitimpl_emulator_switch
)");
#endif

Fiber::~Fiber() { free(stack_); }

void Fiber::enter() {
  Fiber* self = arriving;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &leaving->bottom_, &leaving->size_);
#endif
  self->entry_(self->context_);
  abort();  // entry ends with a switch
}

void Fiber::begin(void (*entry)(void*), void* context) {
  if (stack_ == nullptr) stack_ = aligned_alloc(64, kStack);
  if (stack_ == nullptr) abort();
  entry_ = entry;
  context_ = context;
  shadow_ = nullptr;
  bottom_ = stack_;
  size_ = kStack;
#if defined(__x86_64__)
  // As if enter() had been called and was about to run: its address above six registers, and above
  // that the place of a return address, which leaves the stack aligned as the calling convention asks.
  void** top = reinterpret_cast<void**>(static_cast<char*>(stack_) + kStack);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::enter);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
#else
  getcontext(&state_);
  state_.uc_stack.ss_sp = stack_;
  state_.uc_stack.ss_size = kStack;
  state_.uc_link = nullptr;
  makecontext(&state_, &Fiber::enter, 0);
#endif
}

void Fiber::switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool for_good) {
  arriving = &to;
#if defined(__SANITIZE_ADDRESS__)
  leaving = &from;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.shadow_, to.bottom_, to.size_);
#endif
#if defined(__x86_64__)
  bitimpl_emulator_switch(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.state_, &to.state_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.shadow_, &leaving->bottom_, &leaving->size_);
#endif
}

}  // namespace emulator
}  // namespace bitimpl
