/* `memory_speed BYTES THREADS ROUNDS`: how fast this machine reads memory: each thread adds up its own part of an array
 * of BYTES, in four places of it at a time, since one stream alone leaves a core waiting. Prints bytes a second, the
 * best of ROUNDS. Compiled for the machine, so that the additions are its widest; they cost less than the reading. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { STREAMS = 4, WIDTH = 32, MOST_THREADS = 256 }; /* WIDTH numbers of a stream at a time: four lines of a cache */

struct part {
  const uint64_t *numbers;
  size_t count; /* a multiple of STREAMS * WIDTH */
  uint64_t sum;
  double started, ended;
};

static pthread_barrier_t together;

static uint64_t sum_of(const uint64_t *numbers, size_t count) {
  uint64_t sums[WIDTH] = {0}, sum = 0;
  const size_t apart = count / STREAMS;
  for (size_t i = 0; i < apart; i += WIDTH)
    for (int stream = 0; stream < STREAMS; stream++)
      for (int j = 0; j < WIDTH; j++) sums[j] += numbers[(size_t)stream * apart + i + (size_t)j];
  for (int j = 0; j < WIDTH; j++) sum += sums[j];
  return sum;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* By its own clock: whoever waits for it may get no core until it is done. */
static void *work(void *given) {
  struct part *part = given;
  pthread_barrier_wait(&together);
  part->started = now();
  part->sum = sum_of(part->numbers, part->count);
  part->ended = now();
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  const int threads = atoi(argv[2]), rounds = atoi(argv[3]);
  if (threads < 1 || threads > MOST_THREADS) return 2;
  const size_t count =
      strtoull(argv[1], NULL, 10) / sizeof(uint64_t) / (size_t)threads / (STREAMS * WIDTH) * (STREAMS * WIDTH);
  const size_t bytes = count * (size_t)threads * sizeof(uint64_t);
  uint64_t *numbers = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!count || numbers == MAP_FAILED) return 1;
  madvise(numbers, bytes, MADV_HUGEPAGE); /* as the weights lie */
  memset(numbers, 1, bytes);
  double best = 0;
  for (int round = 0; round < rounds; round++) {
    struct part parts[MOST_THREADS];
    pthread_t helpers[MOST_THREADS];
    pthread_barrier_init(&together, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
      parts[i] = (struct part){numbers + (size_t)i * count, count, 0, 0, 0};
      if (pthread_create(&helpers[i], NULL, work, &parts[i])) return 1;
    }
    double started = 0, ended = 0;
    for (int i = 0; i < threads; i++) {
      pthread_join(helpers[i], NULL);
      if (parts[i].sum != 0x0101010101010101u * (uint64_t)count) return 1; /* and so the reading is not left out */
      if (!i || parts[i].started < started) started = parts[i].started;
      if (parts[i].ended > ended) ended = parts[i].ended;
    }
    const double speed = (double)bytes / (ended - started);
    pthread_barrier_destroy(&together);
    if (speed > best) best = speed;
  }
  printf("%.0f\n", best);
  return 0;
}
