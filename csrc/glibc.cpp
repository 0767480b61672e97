// The wheel loads wherever glibc is 2.28 or newer. Compiled on a newer one, the library would ask for three symbols in
// versions that 2.28 lacks; they are defined here, for this library alone.

#include <features.h>

#ifdef __GLIBC__
#define DADL_HIDDEN extern "C" __attribute__((visibility("hidden")))

// std::shared_ptr asks whether it may count without atomics (2.32). It may not: PyTorch has threads.
DADL_HIDDEN char __libc_single_threaded;
char __libc_single_threaded = 0;

#if defined(__x86_64__)
#define DADL_FIRST_VERSION "@GLIBC_2.2.5"
#elif defined(__aarch64__)
#define DADL_FIRST_VERSION "@GLIBC_2.17"
#endif

#ifdef DADL_FIRST_VERSION
// In 2.29 these two only lost the error handling of System V; the numbers are the same. Named by assembler labels, as
// the compiler takes what is called exp for the C library's, which is not hidden.
extern "C" double first_exp(double x);
extern "C" double first_log(double x);
__asm__(".symver first_exp, exp" DADL_FIRST_VERSION);
__asm__(".symver first_log, log" DADL_FIRST_VERSION);
DADL_HIDDEN double own_exp(double x) __asm__("exp");
DADL_HIDDEN double own_log(double x) __asm__("log");
double own_exp(double x) { return first_exp(x); }
double own_log(double x) { return first_log(x); }
#endif
#endif
