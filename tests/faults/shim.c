/* For LD_PRELOAD: the Nth call that writes below a folder fails, is cut short or kills the process; the wall clock jumps.

   What to do stands in a file that all processes map (FAULT_STATE, or attach()), so that a command and its workers share
   one count. Every counted call is a line in FILE.log: its number, its name, its path. shim.py knows the same layout. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum mode { COUNT, ONLY, FROM, SHORT, HALF, KILL, HALF_KILL };
enum verdict { PASS, FAIL, CUT };
#define ROOM 4096

static struct {
    long count, at, mode, error;     /* calls so far; what happens at which of them; errno */
    long reads, after, jump, swing;  /* wall clock: reads so far; from which on it is off by jump seconds; or back and forth */
    char prefix[ROOM];
} *state;
static char log_path[ROOM];

void attach(const char *path)
{
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    void *found = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (found == MAP_FAILED)
        abort();
    snprintf(log_path, sizeof log_path, "%s.log", path);
    state = found;
}

__attribute__((constructor)) static void from_environment(void)
{
    if (getenv("FAULT_STATE"))
        attach(getenv("FAULT_STATE"));
}

static void note(long number, const char *call, const char *path)
{
    char line[2 * ROOM];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, call, path);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_APPEND | O_CREAT, 0600);
    syscall(SYS_write, fd, line, length);
    syscall(SYS_close, fd);
}

/* What becomes of this call. A full disk still lets go of files: ``frees`` calls never meet ENOSPC or EDQUOT. */
static enum verdict judge(const char *call, const char *path, int frees)
{
    if (!state || !state->prefix[0] || strncmp(path, state->prefix, strlen(state->prefix)))
        return PASS;
    long now = __atomic_add_fetch(&state->count, 1, __ATOMIC_SEQ_CST), at = state->at;
    note(now, call, path);
    int writes = strstr(call, "write") != NULL;
    switch (state->mode) {
    case ONLY: if (now != at) return PASS; break;
    case FROM: if (now < at) return PASS; break;
    case SHORT: return now == at && writes ? CUT : PASS;
    case HALF: if (now < at) return PASS; if (now == at && writes) return CUT; break;
    case KILL: if (now == at) kill(getpid(), SIGKILL); return PASS;
    case HALF_KILL: return now == at ? (writes ? CUT : (kill(getpid(), SIGKILL), PASS)) : PASS;
    default: return PASS;
    }
    if (frees && (state->error == ENOSPC || state->error == EDQUOT))
        return PASS;
    errno = (int)state->error;
    return FAIL;
}

/* The same for a path as a program gives it, below an open folder or the current one. */
static enum verdict judge_at(const char *call, int folder, const char *path, int frees)
{
    char link[64], whole[2 * ROOM];
    ssize_t length = 0;
    if (path[0] != '/') {
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        length = readlink(link, whole, ROOM);
        if (length < 0)
            return PASS;
        whole[length++] = '/';
    }
    snprintf(whole + length, ROOM, "%s", path);
    return judge(call, whole, frees);
}

static enum verdict judge_fd(const char *call, int fd, int frees)
{
    char link[64], path[ROOM];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return PASS;
    path[length] = 0;
    return judge(call, path, frees);
}

static ssize_t after_cut(ssize_t written)
{
    if (state->mode == HALF_KILL)
        kill(getpid(), SIGKILL);
    return written;
}

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })
#define WRITING(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR))
#define MODE(flags, last) mode_t mode = 0; if ((flags) & (O_CREAT | __O_TMPFILE)) { \
    va_list rest; va_start(rest, last); mode = va_arg(rest, mode_t); va_end(rest); }
#define OPEN(name) int name(const char *path, int flags, ...) { MODE(flags, flags) \
    return WRITING(flags) && judge_at("open", AT_FDCWD, path, 0) ? -1 : REAL(name)(path, flags, mode); }
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { MODE(flags, flags) \
    return WRITING(flags) && judge_at("open", folder, path, 0) ? -1 : REAL(name)(folder, path, flags, mode); }
#define OF_PATH(name, frees, parameters, folder, path, ...) int name parameters { \
    return judge_at(#name, folder, path, frees) ? -1 : REAL(name)(__VA_ARGS__); }
#define OF_FD(name, frees, parameters, ...) int name parameters { \
    return judge_fd(#name, fd, frees) ? -1 : REAL(name)(__VA_ARGS__); }
#define WRITE(name, parameters, ...) ssize_t name parameters { \
    enum verdict found = judge_fd(#name, fd, 0); \
    if (found != CUT) return found ? -1 : REAL(name)(__VA_ARGS__); \
    size /= 2; return after_cut(REAL(name)(__VA_ARGS__)); }

OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
WRITE(write, (int fd, const void *data, size_t size), fd, data, size)
WRITE(pwrite, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
OF_FD(fsync, 0, (int fd), fd)
OF_FD(fdatasync, 0, (int fd), fd)
OF_FD(ftruncate, 0, (int fd, off_t size), fd, size)
OF_FD(ftruncate64, 0, (int fd, off64_t size), fd, size)
OF_FD(fchmod, 1, (int fd, mode_t mode), fd, mode)
OF_PATH(chmod, 1, (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
OF_PATH(rename, 0, (const char *from, const char *to), AT_FDCWD, to, from, to)
OF_PATH(renameat, 0, (int a, const char *from, int b, const char *to), b, to, a, from, b, to)
OF_PATH(renameat2, 0, (int a, const char *from, int b, const char *to, unsigned how), b, to, a, from, b, to, how)
OF_PATH(mkdir, 0, (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
OF_PATH(mkdirat, 0, (int folder, const char *path, mode_t mode), folder, path, folder, path, mode)
OF_PATH(unlink, 1, (const char *path), AT_FDCWD, path, path)
OF_PATH(unlinkat, 1, (int folder, const char *path, int flags), folder, path, folder, path, flags)
OF_PATH(rmdir, 1, (const char *path), AT_FDCWD, path, path)

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    enum verdict found = judge_fd("writev", fd, 0);
    if (found == CUT) /* the first part alone is as short as a write can be */
        return after_cut(REAL(writev)(fd, parts, 1));
    return found ? -1 : REAL(writev)(fd, parts, count);
}

static long shift(void)
{
    if (!state || !state->jump)
        return 0;
    long now = __atomic_add_fetch(&state->reads, 1, __ATOMIC_SEQ_CST);
    return now <= state->after ? 0 : state->swing && now % 2 ? -state->jump : state->jump;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    int code = REAL(clock_gettime)(clock, time);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        time->tv_sec += shift();
    return code;
}

int gettimeofday(struct timeval *time, void *zone)
{
    int code = REAL(gettimeofday)(time, zone);
    time->tv_sec += shift();
    return code;
}

time_t time(time_t *out)
{
    time_t now = REAL(time)(NULL) + shift();
    if (out)
        *out = now;
    return now;
}
