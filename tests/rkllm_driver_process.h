/* The part of rkllm_driver.c that forks and is interrupted by signals; included there, after what it uses. */

/* What a signal handler does, and what came of it; printed later, as stdio is not for handlers. */
static const char* handlers_call;
static volatile sig_atomic_t handled, handlers_result;

static void on_signal(int number) {
  const int before = errno;
  if (number == SIGALRM) { /* of a storm */
    api.is_running(handle);
    handlers_result = api.abort(handle);
  } else if (!strcmp(handlers_call, "destroy")) {
    handlers_result = api.destroy(handle);
    if (handlers_result == 0) alive = 0;
  } else {
    handlers_result = !strcmp(handlers_call, "abort") ? api.abort(handle) : api.run(handle, &input, infer_given, NULL);
  }
  handled++;
  errno = before;
}

static long signal_ms;

static void* send_signal(void* unused) {
  usleep((useconds_t)(signal_ms * 1000));
  pthread_kill(main_thread, SIGUSR1);
  return unused;
}

/* MS,CALL: so much later a signal interrupts the main thread, and its handler makes that call. */
static void signal_in(char* text) {
  char* call = strchr(text, ',');
  if (!call) die("signal_in wants MS,CALL, not", text);
  handlers_call = call + 1;
  signal_ms = atol(text);
  signal(SIGUSR1, on_signal);
  if (pthread_create(&helper, NULL, send_signal, NULL)) die("cannot start", "a thread");
}

/* A signal each so many microseconds, whose handler calls is_running and abort; 0 ends it. */
static void storm(long us) {
  signal(SIGALRM, on_signal);
  struct itimerval timer = {{0, us}, {0, us}};
  setitimer(ITIMER_REAL, &timer, NULL);
}

/* Asked by LeakSanitizer at the end: it does not know that a child has not its parent's threads, and takes what they
 * held for lost. */
static int is_child;
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void) { return is_child; }

/* Until all other threads sleep. ASan's allocator has locks of its own, which are not made for forks as glibc's are: if
 * a thread holds one just then, say one of the pool that is starting, the child waits for it for ever. */
static void let_others_rest(void) {
#ifdef __SANITIZE_ADDRESS__
  const long self = (long)syscall(SYS_gettid);
  for (int calm = 0, tries = 0; calm < 3 && tries < 5000; tries++, usleep(1000)) {
    DIR* tasks = opendir("/proc/self/task");
    int awake = 0;
    for (struct dirent* task = readdir(tasks); task; task = readdir(tasks)) {
      char path[64], text[512];
      if (atol(task->d_name) <= 0 || atol(task->d_name) == self) continue;
      snprintf(path, sizeof path, "/proc/self/task/%ld/stat", atol(task->d_name));
      FILE* file = fopen(path, "r");
      if (!file) continue;
      const size_t length = fread(text, 1, sizeof text - 1, file);
      fclose(file);
      text[length] = 0;
      const char* name_end = strrchr(text, ')');
      awake += name_end && name_end[2] != 'S';
    }
    closedir(tasks);
    calm = awake ? 0 : calm + 1;
  }
#endif
}

/* The child goes on with everything, the parent when that has ended. */
static void fork_here(void) {
  fflush(NULL);
  let_others_rest();
  const pid_t child = fork();
  if (child == 0) {
    is_child = 1;
    child_offset = 100;
    return;
  }
  int status = 0;
  waitpid(child, &status, 0);
  ret("child", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
}

/* The child does what follows, up to `parent`; the parent waits for it, then does what follows that. */
static int forked(int argc, char** argv, int at) {
  fflush(NULL);
  let_others_rest();
  const pid_t child = fork();
  if (child == 0) {
    is_child = 1;
    run_number += 100;
    return at;
  }
  int status = 0, waited = 0;
  for (int i = 0; i < 20000 && !(waited = waitpid(child, &status, WNOHANG) == child); i++) usleep(1000);
  if (!waited) {
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
  }
  printf("ret child %d\n", waited ? WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status) : -1000);
  while (at < argc - 1 && strcmp(argv[at], "parent")) at++;
  return at;
}
