/* `int8_speed SECONDS`: how many int8 multiplications and additions one core does a second where no memory is in the
 * way: the instruction of the kernels, on registers. Prints 0 where the processor has no such instruction that we use
 * (AVX-512 VNNI). Compiled for the machine. */
#define _POSIX_C_SOURCE 199309L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { SUMS = 16, STEPS = 1 << 16, OPERATIONS = 64 * 2 }; /* as many sums as hide how long one takes */

#if defined(__AVX512VNNI__)
/* In assembly: GCC 12 copies every sum in every step of the loop. What the registers hold does not matter. */
static void work(void) {
  for (int step = 0; step < STEPS; step++)
    __asm__ volatile(
        ".irp sum, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15\n\t"
        "vpdpbusd %%zmm17, %%zmm16, %%zmm\\sum\n\t"
        ".endr"
        :
        :
        : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
          "xmm13", "xmm14", "xmm15", "xmm16", "xmm17");
}
#endif

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  double most = 0;
#if defined(__AVX512VNNI__)
  for (double passed = 0, took; passed < atof(argv[1]); passed += took) {
    struct timespec from, to;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
    work();
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
    took = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
    if ((double)SUMS * STEPS * OPERATIONS / took > most) most = (double)SUMS * STEPS * OPERATIONS / took;
  }
#endif
  printf("%.0f\n", most);
  return 0;
}
