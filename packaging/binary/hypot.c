/* hypot() as of the oldest glibc.  glibc 2.35 gave it a new version that only no longer knows SVID error handling; the linker would pick
 * that one, and it would be the only reason why a binary from a newer machine does not run with glibc 2.34 (RHEL 9). */
#if defined(__x86_64__)
__asm__(".symver first_hypot,hypot@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver first_hypot,hypot@GLIBC_2.17");
#endif
extern double first_hypot(double, double);
double __wrap_hypot(double x, double y) { return first_hypot(x, y); }
