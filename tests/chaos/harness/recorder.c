/* Writes down what a process does to the files of one directory, for harness/images.py.
 *
 * Preloaded into a server. Every successful write, truncation, sync, creation, renaming and
 * removal of a file in RECORDER_FOLDER is appended to the file RECORDER_LOG, in the order in which
 * they took effect: one lock is held over the call and its record. Others may append marks of
 * their own, with one write each to the same file opened with O_APPEND. What SQLite keeps in -shm
 * and the lock file hold nothing that has to survive, and are left out.
 *
 * A record is, in the machine's byte order: kind, length of the name (4 bytes each), number,
 * length of the data (8 bytes each), then the name and the data.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, TRUNCATE, SYNC, SYNC_FOLDER, CREATE, RENAME, UNLINK };

struct head {
    uint32_t kind, name_length;
    uint64_t number, data_length;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *folder;
static size_t folder_length;
static int log_fd = -1;

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found)
        abort();
    return found;
}

/* Each real function is looked up once; doing that twice at the same time does no harm. */
#define REAL(type, name) \
    static type real_##name; \
    if (!real_##name) \
    real_##name = (type)real(#name)

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("RECORDER_LOG");
    folder = getenv("RECORDER_FOLDER");
    if (!path || !folder)
        return;
    folder_length = strlen(folder);
    log_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log_fd < 0)
        abort();
}

static int ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

/* The name within the folder; "" for the folder itself; NULL for what is not recorded. */
static const char *within(const char *path)
{
    if (log_fd < 0 || strncmp(path, folder, folder_length) != 0)
        return NULL;
    if (path[folder_length] == '\0')
        return "";
    if (path[folder_length] != '/')
        return NULL;
    const char *name = path + folder_length + 1;
    if (strchr(name, '/') || ends_with(name, "-shm") || ends_with(name, ".lock"))
        return NULL;
    return ends_with(name, " (deleted)") ? NULL : name;
}

static const char *name_of(int fd, char *room)
{
    char link[64];
    int saved = errno;
    if (log_fd < 0 || fd == log_fd)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, room, PATH_MAX - 1);
    errno = saved;
    if (length <= 0)
        return NULL;
    room[length] = '\0';
    return within(room);
}

/* A gap in the record would make a good image look bad, or a bad one good: rather end it all. */
static void record(uint32_t kind, const char *name, uint64_t number, const void *data, size_t size)
{
    int saved = errno;
    struct head head = {kind, (uint32_t)strlen(name), number, size};
    struct iovec parts[3] = {
        {&head, sizeof head}, {(void *)name, head.name_length}, {(void *)data, size}};
    if (writev(log_fd, parts, 3) != (ssize_t)(sizeof head + head.name_length + size))
        abort();
    errno = saved;
}

typedef ssize_t (*write_type)(int, const void *, size_t);
typedef ssize_t (*pwrite_type)(int, const void *, size_t, off_t);
typedef int (*truncate_type)(int, off_t);
typedef int (*sync_type)(int);
typedef int (*open_type)(const char *, int, ...);
typedef int (*rename_type)(const char *, const char *);
typedef int (*unlink_type)(const char *);

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write_type, write);
    char room[PATH_MAX];
    const char *name = name_of(fd, room);
    if (!name)
        return real_write(fd, data, size);
    pthread_mutex_lock(&lock);
    ssize_t done = real_write(fd, data, size);
    if (done > 0)
        record(WRITE, name, (uint64_t)(lseek(fd, 0, SEEK_CUR) - done), data, (size_t)done);
    pthread_mutex_unlock(&lock);
    return done;
}

static ssize_t write_at(pwrite_type call, int fd, const void *data, size_t size, off_t at)
{
    char room[PATH_MAX];
    const char *name = name_of(fd, room);
    if (!name)
        return call(fd, data, size, at);
    pthread_mutex_lock(&lock);
    ssize_t done = call(fd, data, size, at);
    if (done > 0)
        record(WRITE, name, (uint64_t)at, data, (size_t)done);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    REAL(pwrite_type, pwrite);
    return write_at(real_pwrite, fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t at)
{
    REAL(pwrite_type, pwrite64);
    return write_at(real_pwrite64, fd, data, size, at);
}

static int truncate_to(truncate_type call, int fd, off_t size)
{
    char room[PATH_MAX];
    const char *name = name_of(fd, room);
    if (!name)
        return call(fd, size);
    pthread_mutex_lock(&lock);
    int failed = call(fd, size);
    if (!failed)
        record(TRUNCATE, name, (uint64_t)size, "", 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

int ftruncate(int fd, off_t size)
{
    REAL(truncate_type, ftruncate);
    return truncate_to(real_ftruncate, fd, size);
}

int ftruncate64(int fd, off_t size)
{
    REAL(truncate_type, ftruncate64);
    return truncate_to(real_ftruncate64, fd, size);
}

static int sync_by(sync_type call, int fd)
{
    char room[PATH_MAX];
    const char *name = name_of(fd, room);
    if (!name)
        return call(fd);
    pthread_mutex_lock(&lock);
    int failed = call(fd);
    if (!failed)
        record(*name ? SYNC : SYNC_FOLDER, name, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

int fsync(int fd)
{
    REAL(sync_type, fsync);
    return sync_by(real_fsync, fd);
}

int fdatasync(int fd)
{
    REAL(sync_type, fdatasync);
    return sync_by(real_fdatasync, fd);
}

static int open_by(open_type call, const char *path, int flags, mode_t mode)
{
    const char *name = flags & O_CREAT ? within(path) : NULL;
    if (!name || !*name)
        return call(path, flags, mode);
    pthread_mutex_lock(&lock);
    int there = access(path, F_OK) == 0;
    int fd = call(path, flags, mode);
    if (fd >= 0 && !there)
        record(CREATE, name, 0, "", 0);
    else if (fd >= 0 && flags & O_TRUNC)
        record(TRUNCATE, name, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE_OF(flags, mode) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...)
{
    REAL(open_type, open);
    MODE_OF(flags, mode)
    return open_by(real_open, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    REAL(open_type, open64);
    MODE_OF(flags, mode)
    return open_by(real_open64, path, flags, mode);
}

int rename(const char *from, const char *to)
{
    REAL(rename_type, rename);
    const char *old = within(from), *new = within(to);
    if (!old || !new)
        return real_rename(from, to);
    pthread_mutex_lock(&lock);
    int failed = real_rename(from, to);
    if (!failed)
        record(RENAME, old, 0, new, strlen(new));
    pthread_mutex_unlock(&lock);
    return failed;
}

int unlink(const char *path)
{
    REAL(unlink_type, unlink);
    const char *name = within(path);
    if (!name)
        return real_unlink(path);
    pthread_mutex_lock(&lock);
    int failed = real_unlink(path);
    if (!failed)
        record(UNLINK, name, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return failed;
}
