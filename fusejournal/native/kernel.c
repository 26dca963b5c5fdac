/* System calls that Python's os lacks or is slow at, and the structs of FUSE's replies.
 *
 * kernel.pyi says what each function takes and gives; layer/kernel_protocol.py has the structs as
 * tables. Every call gives up the GIL, because the file system below may wait for a disk, and
 * raises the OSError of its errno. One that a signal interrupts is made again, as Python's os does
 * it, unless the signal's handler raises. There is no state here.
 *
 * Source: open_by_handle_at(2), utimensat(2), renameat2(2), fchownat(2), linkat(2), statx(2),
 * fallocate(2), syncfs(2), statfs(2), prctl(2), capget(2), setfsuid(2), setns(2), mount(2),
 * pidfd_getfd(2); PEP 475; include/uapi/linux/fuse.h; fs/fuse/dev.c.
 */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000LL
#define HANDLE_BYTES_MAX 128
#define STATX_MOUNT_IDS (0x1000 | 0x4000) /* STATX_MNT_ID, STATX_MNT_ID_UNIQUE */

/* Returns whether the call that has failed is to be made again, because a signal interrupted it
 * and the signal's handler has not raised. */
static bool is_to_repeat(void)
{
    if (errno != EINTR)
        return false;
    if (PyErr_CheckSignals() == 0)
        return true;
    errno = EINTR; /* the handler may have left another */
    return false;
}

/* Gives up the GIL for one call. */
#define UNLOCKED(result, call)                                                                     \
    do {                                                                                           \
        Py_BEGIN_ALLOW_THREADS(result = call);                                                     \
        Py_END_ALLOW_THREADS                                                                       \
    } while (result < 0 && is_to_repeat())

static PyObject *failed(void)
{
    return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *done(int result)
{
    if (result < 0)
        return failed();
    Py_RETURN_NONE;
}

static bool has(Py_ssize_t given, Py_ssize_t least, Py_ssize_t most)
{
    if (given >= least && given <= most)
        return true;
    PyErr_Format(PyExc_TypeError, "%zd arguments were expected, not %zd", most, given);
    return false;
}

static bool to_int(PyObject *object, int *number)
{
    long found = PyLong_AsLong(object);
    if (found == -1 && PyErr_Occurred())
        return false;
    *number = (int)found;
    if (*number == found)
        return true;
    PyErr_SetString(PyExc_OverflowError, "a number is no int of C");
    return false;
}

static bool to_u32(PyObject *object, uint32_t *number)
{
    unsigned long long found = PyLong_AsUnsignedLongLong(object);
    if (found == (unsigned long long)-1 && PyErr_Occurred())
        return false;
    *number = (uint32_t)found;
    if (*number == found)
        return true;
    PyErr_SetString(PyExc_OverflowError, "a number has more than 32 bits");
    return false;
}

static bool to_i64(PyObject *object, int64_t *number)
{
    *number = PyLong_AsLongLong(object);
    return *number != -1 || !PyErr_Occurred();
}

static bool to_u64(PyObject *object, uint64_t *number)
{
    *number = PyLong_AsUnsignedLongLong(object);
    return *number != (uint64_t)-1 || !PyErr_Occurred();
}

/* A name or path: bytes without a NUL. */
static bool to_path(PyObject *object, const char **path)
{
    return PyBytes_AsStringAndSize(object, (char **)path, NULL) == 0;
}

/* ---- handles, times, names ------------------------------------------------------------------ */

static PyObject *handle_of(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    struct {
        struct file_handle head;
        unsigned char bytes[HANDLE_BYTES_MAX];
    } handle;
    const char *name = "";
    int fd, result, mount_id;

    if (!has(count, 1, 2) || !to_int(given[0], &fd) || (count > 1 && !to_path(given[1], &name)))
        return NULL;
    handle.head.handle_bytes = HANDLE_BYTES_MAX;
    UNLOCKED(result, name_to_handle_at(fd, name, &handle.head, &mount_id,
                                       *name ? 0 : AT_EMPTY_PATH));
    if (result < 0)
        return failed();
    return PyBytes_FromStringAndSize((char *)&handle.head.handle_type,
                                     sizeof handle.head.handle_type + handle.head.handle_bytes);
}

static PyObject *open_by_handle(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    struct {
        struct file_handle head;
        unsigned char bytes[HANDLE_BYTES_MAX];
    } handle;
    char *bytes;
    Py_ssize_t size;
    int mount_fd, flags, fd;

    if (!has(count, 3, 3) || !to_int(given[0], &mount_fd) || !to_int(given[2], &flags) ||
        PyBytes_AsStringAndSize(given[1], &bytes, &size) < 0)
        return NULL;
    size -= sizeof handle.head.handle_type;
    if (size < 0 || size > HANDLE_BYTES_MAX) {
        errno = EINVAL;
        return failed();
    }
    handle.head.handle_bytes = (unsigned int)size;
    memcpy(&handle.head.handle_type, bytes, sizeof handle.head.handle_type + size);
    UNLOCKED(fd, open_by_handle_at(mount_fd, &handle.head, flags | O_CLOEXEC));
    return fd < 0 ? failed() : PyLong_FromLong(fd);
}

/* Nanoseconds as seconds and the rest. A file's times may have more than 64 bits. */
static bool to_time(PyObject *object, struct timespec *found)
{
    int overflow;
    int64_t time_ns = PyLong_AsLongLongAndOverflow(object, &overflow);
    PyObject *second, *parts;

    if (time_ns == -1 && PyErr_Occurred())
        return false;
    if (!overflow) {
        bool is_before = time_ns % SECOND_NS < 0; /* C rounds towards 0 */
        *found = (struct timespec){time_ns / SECOND_NS - is_before,
                                   time_ns % SECOND_NS + is_before * SECOND_NS};
        return true;
    }
    second = PyLong_FromLongLong(SECOND_NS);
    parts = second == NULL ? NULL : PyNumber_Divmod(object, second);
    Py_XDECREF(second);
    if (parts == NULL)
        return false;
    found->tv_sec = PyLong_AsLongLong(PyTuple_GET_ITEM(parts, 0));
    found->tv_nsec = PyLong_AsLong(PyTuple_GET_ITEM(parts, 1));
    Py_DECREF(parts);
    return !PyErr_Occurred();
}

static PyObject *from_time(int64_t seconds, int64_t part_ns)
{
    PyObject *in_seconds, *second, *product = NULL, *part, *sum = NULL;

    if (seconds > INT64_MIN / SECOND_NS && seconds < INT64_MAX / SECOND_NS)
        return PyLong_FromLongLong(seconds * SECOND_NS + part_ns);
    in_seconds = PyLong_FromLongLong(seconds);
    second = PyLong_FromLongLong(SECOND_NS);
    part = PyLong_FromLongLong(part_ns);
    if (in_seconds != NULL && second != NULL && part != NULL)
        product = PyNumber_Multiply(in_seconds, second);
    if (product != NULL)
        sum = PyNumber_Add(product, part);
    Py_XDECREF(in_seconds);
    Py_XDECREF(second);
    Py_XDECREF(part);
    Py_XDECREF(product);
    return sum;
}

static bool to_new_time(PyObject *object, struct timespec *found)
{
    if (object != Py_None)
        return to_time(object, found);
    *found = (struct timespec){0, UTIME_OMIT};
    return true;
}

static int set_times_of(int fd, const struct timespec times[2])
{
    int result = futimens(fd, times);

    /* Only O_PATH is refused so; the call that takes it looks the file up, which costs. */
    if (result < 0 && errno == EBADF)
        result = utimensat(fd, "", times, AT_EMPTY_PATH);
    return result;
}

static PyObject *set_times(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    struct timespec times[2];
    int fd, result;

    if (!has(count, 3, 3) || !to_int(given[0], &fd) || !to_new_time(given[1], &times[0]) ||
        !to_new_time(given[2], &times[1]))
        return NULL;
    UNLOCKED(result, set_times_of(fd, times));
    return done(result);
}

static PyObject *chown_(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    uint32_t uid, gid;
    int fd, result;

    if (!has(count, 3, 3) || !to_int(given[0], &fd) || !to_u32(given[1], &uid) ||
        !to_u32(given[2], &gid))
        return NULL;
    UNLOCKED(result, fchownat(fd, "", uid, gid, AT_EMPTY_PATH));
    return done(result);
}

static PyObject *rename_(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    const char *old, *new;
    int old_dir, new_dir, result;
    uint32_t flags;

    if (!has(count, 5, 5) || !to_int(given[0], &old_dir) || !to_path(given[1], &old) ||
        !to_int(given[2], &new_dir) || !to_path(given[3], &new) || !to_u32(given[4], &flags))
        return NULL;
    UNLOCKED(result, renameat2(old_dir, old, new_dir, new, flags));
    return done(result);
}

static PyObject *link_(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    const char *name;
    int fd, new_dir, result;

    if (!has(count, 3, 3) || !to_int(given[0], &fd) || !to_int(given[1], &new_dir) ||
        !to_path(given[2], &name))
        return NULL;
    UNLOCKED(result, linkat(fd, "", new_dir, name, AT_EMPTY_PATH));
    return done(result);
}

/* ---- attributes ------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    struct stat stat;
} FileStat;

static PyTypeObject FileStatType;

#define GETTER(field, made)                                                                        \
    static PyObject *get_##field(FileStat *self, void *closure) { return made; }
GETTER(mode, PyLong_FromUnsignedLong(self->stat.st_mode))
GETTER(ino, PyLong_FromUnsignedLongLong(self->stat.st_ino))
GETTER(dev, PyLong_FromUnsignedLongLong(self->stat.st_dev))
GETTER(nlink, PyLong_FromUnsignedLong(self->stat.st_nlink))
GETTER(uid, PyLong_FromUnsignedLong(self->stat.st_uid))
GETTER(gid, PyLong_FromUnsignedLong(self->stat.st_gid))
GETTER(rdev, PyLong_FromUnsignedLongLong(self->stat.st_rdev))
GETTER(size, PyLong_FromLongLong(self->stat.st_size))
GETTER(blksize, PyLong_FromLong(self->stat.st_blksize))
GETTER(blocks, PyLong_FromLongLong(self->stat.st_blocks))
GETTER(atime_ns, from_time(self->stat.st_atim.tv_sec, self->stat.st_atim.tv_nsec))
GETTER(mtime_ns, from_time(self->stat.st_mtim.tv_sec, self->stat.st_mtim.tv_nsec))
GETTER(ctime_ns, from_time(self->stat.st_ctim.tv_sec, self->stat.st_ctim.tv_nsec))

#define FIELD(name) {"st_" #name, (getter)get_##name, NULL, NULL, NULL}

static PyGetSetDef stat_fields[] = {
    FIELD(mode), FIELD(ino),  FIELD(dev),     FIELD(nlink),    FIELD(uid),      FIELD(gid),      FIELD(rdev),
    FIELD(size), FIELD(blksize), FIELD(blocks), FIELD(atime_ns), FIELD(mtime_ns), FIELD(ctime_ns), {NULL},
};

static PyTypeObject FileStatType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "fusejournal.native.kernel.FileStat",
    .tp_doc = "The attributes of a file: those of os.stat_result that are asked for.",
    .tp_basicsize = sizeof(FileStat),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_getset = stat_fields,
};

static PyObject *stat_of(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    const char *name = NULL;
    FileStat *found;
    int fd, result;

    if (!has(count, 1, 2) || !to_int(given[0], &fd) || (count > 1 && !to_path(given[1], &name)))
        return NULL;
    found = PyObject_New(FileStat, &FileStatType);
    if (found == NULL)
        return NULL;
    UNLOCKED(result, name == NULL ? fstat(fd, &found->stat)
                                  : fstatat(fd, name, &found->stat, AT_SYMLINK_NOFOLLOW));
    if (result == 0)
        return (PyObject *)found;
    Py_DECREF(found);
    return failed();
}

static PyObject *exists(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    struct stat found;
    const char *name;
    int fd, result;

    if (!has(count, 2, 2) || !to_int(given[0], &fd) || !to_path(given[1], &name))
        return NULL;
    UNLOCKED(result, fstatat(fd, name, &found, AT_SYMLINK_NOFOLLOW));
    return result < 0 && errno != ENOENT ? failed() : PyBool_FromLong(result == 0);
}

/* ---- requests and replies -------------------------------------------------------------------- */

static int64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND_NS + now.tv_nsec;
}

/* Polls both for timeout_ns at most, and does not sleep in the first spin_ns of it. */
static int poll_both(struct pollfd *polled, int64_t timeout_ns, int64_t spin_ns)
{
    int64_t begun_ns = spin_ns ? now_ns() : 0;
    struct timespec timeout;
    int result;

    while (spin_ns) {
        result = poll(polled, 2, 0);
        if (result)
            return result;
        if (now_ns() - begun_ns >= spin_ns)
            break;
    }
    timeout_ns = timeout_ns > spin_ns ? timeout_ns - spin_ns : 0;
    timeout = (struct timespec){timeout_ns / SECOND_NS, timeout_ns % SECOND_NS};
    return ppoll(polled, 2, &timeout, NULL);
}

static PyObject *read_request(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    struct pollfd polled[2] = {{.events = POLLIN}, {.events = POLLIN}};
    Py_buffer buffer;
    int64_t timeout_ns, spin_ns;
    ssize_t size = 0;
    int result;

    if (!has(count, 5, 5) || !to_int(given[0], &polled[0].fd) || !to_int(given[1], &polled[1].fd) ||
        !to_i64(given[2], &timeout_ns) || !to_i64(given[3], &spin_ns) ||
        PyObject_GetBuffer(given[4], &buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = poll_both(polled, timeout_ns, spin_ns);
    if (result > 0 && polled[0].revents) {
        size = read(polled[0].fd, buffer.buf, buffer.len);
        /* What poll saw was interrupted before it was read. */
        if (size < 0 && (errno == ENOENT || errno == EAGAIN || errno == EINTR))
            size = 0;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&buffer);
    if (result < 0 && errno != EINTR)
        return failed();
    if (size < 0)
        return failed();
    return PyLong_FromSsize_t(size << 1 | (result > 0 && polled[1].revents != 0));
}

static PyObject *write_reply(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    struct fuse_out_header head;
    struct iovec parts[2] = {{.iov_base = &head, .iov_len = sizeof head}};
    char *body = NULL;
    Py_ssize_t size = 0;
    uint64_t unique;
    ssize_t written;
    int fd, error;

    if (!has(count, 3, 4) || !to_int(given[0], &fd) || !to_u64(given[1], &unique) ||
        !to_int(given[2], &error) ||
        (count > 3 && PyBytes_AsStringAndSize(given[3], &body, &size) < 0))
        return NULL;
    head = (struct fuse_out_header){(uint32_t)(sizeof head + size), -error, unique};
    parts[1] = (struct iovec){body, size};
    UNLOCKED(written, writev(fd, parts, size ? 2 : 1));
    return written < 0 ? failed() : done(0);
}

/* From the arguments fid, stat, ctime_ns, nlink. */
static bool to_attr(PyObject *const *given, struct fuse_attr *attr)
{
    const struct stat *stat = &((FileStat *)given[1])->stat;
    struct timespec ctime;
    uint64_t fid;
    uint32_t nlink;

    if (!PyObject_TypeCheck(given[1], &FileStatType)) {
        PyErr_SetString(PyExc_TypeError, "a FileStat was expected");
        return false;
    }
    if (!to_u64(given[0], &fid) || !to_time(given[2], &ctime) || !to_u32(given[3], &nlink))
        return false;
    *attr = (struct fuse_attr){
        .ino = fid,
        .size = stat->st_size,
        .blocks = stat->st_blocks,
        .atime = stat->st_atim.tv_sec,
        .mtime = stat->st_mtim.tv_sec,
        .ctime = ctime.tv_sec,
        .atimensec = stat->st_atim.tv_nsec,
        .mtimensec = stat->st_mtim.tv_nsec,
        .ctimensec = ctime.tv_nsec,
        .mode = stat->st_mode,
        .nlink = nlink,
        .uid = stat->st_uid,
        .gid = stat->st_gid,
        .rdev = stat->st_rdev,
        .blksize = stat->st_blksize,
    };
    return true;
}

static PyObject *encode_attributes(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    struct fuse_attr_out out = {0};

    if (!has(count, 5, 5) || !to_attr(given, &out.attr) || !to_u64(given[4], &out.attr_valid))
        return NULL;
    return PyBytes_FromStringAndSize((char *)&out, sizeof out);
}

/* From the arguments fid, stat, ctime_ns, nlink, generation, keep_name_seconds, keep_seconds. */
static bool to_entry(PyObject *const *given, struct fuse_entry_out *out)
{
    out->entry_valid_nsec = out->attr_valid_nsec = 0;
    if (!to_attr(given, &out->attr) || !to_u64(given[4], &out->generation) ||
        !to_u64(given[5], &out->entry_valid) || !to_u64(given[6], &out->attr_valid))
        return false;
    out->nodeid = out->attr.ino;
    return true;
}

static PyObject *encode_entry(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    struct fuse_entry_out out;

    if (!has(count, 7, 7) || !to_entry(given, &out))
        return NULL;
    return PyBytes_FromStringAndSize((char *)&out, sizeof out);
}

static PyObject *encode_listed(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    struct fuse_direntplus *out;
    PyObject *bytes;
    char *name;
    Py_ssize_t length, size;
    uint64_t cookie;

    if (!has(count, 9, 9) || !to_u64(given[8], &cookie) ||
        PyBytes_AsStringAndSize(given[7], &name, &length) < 0)
        return NULL;
    size = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + length);
    bytes = PyBytes_FromStringAndSize(NULL, size);
    if (bytes == NULL)
        return NULL;
    out = (struct fuse_direntplus *)PyBytes_AS_STRING(bytes);
    memset((char *)out + size - sizeof(uint64_t), 0, sizeof(uint64_t));
    if (!to_entry(given, &out->entry_out)) {
        Py_DECREF(bytes);
        return NULL;
    }
    out->dirent.ino = out->entry_out.nodeid;
    out->dirent.off = cookie;
    out->dirent.namelen = (uint32_t)length;
    out->dirent.type = (out->entry_out.attr.mode & S_IFMT) >> 12;
    memcpy(out->dirent.name, name, length);
    return bytes;
}

/* ---- space, flushes, privileges, mounts ------------------------------------------------------ */

static PyObject *fallocate_(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    int64_t offset, length;
    int fd, mode, result;

    if (!has(count, 4, 4) || !to_int(given[0], &fd) || !to_int(given[1], &mode) ||
        !to_i64(given[2], &offset) || !to_i64(given[3], &length))
        return NULL;
    UNLOCKED(result, fallocate(fd, mode, offset, length));
    return done(result);
}

static PyObject *syncfs_(PyObject *module, PyObject *fd_object)
{
    int fd, result;

    if (!to_int(fd_object, &fd))
        return NULL;
    UNLOCKED(result, syncfs(fd));
    return done(result);
}

static PyObject *filesystem_magic(PyObject *module, PyObject *fd_object)
{
    struct statfs space;
    int fd, result;

    if (!to_int(fd_object, &fd))
        return NULL;
    UNLOCKED(result, fstatfs(fd, &space));
    return result < 0 ? failed() : PyLong_FromUnsignedLong((uint32_t)space.f_type);
}

static PyObject *mount_id(PyObject *module, PyObject *fd_object)
{
    union {
        unsigned char bytes[256];
        uint64_t words[32];
    } found = {0};
    int fd;
    long result;

    if (!to_int(fd_object, &fd))
        return NULL;
    /* glibc's struct may be older than the field. */
    UNLOCKED(result, syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_MOUNT_IDS, &found));
    return result < 0 ? failed() : PyLong_FromUnsignedLongLong(found.words[144 / 8]);
}

static PyObject *birth_time(PyObject *module, PyObject *fd_object)
{
    struct statx found;
    int fd, result;

    if (!to_int(fd_object, &fd))
        return NULL;
    UNLOCKED(result, statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &found));
    if (result < 0)
        return failed();
    if (!(found.stx_mask & STATX_BTIME))
        Py_RETURN_NONE;
    return from_time(found.stx_btime.tv_sec, found.stx_btime.tv_nsec);
}

static PyObject *prctl_(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    uint64_t argument = 0;
    int option, result;

    if (!has(count, 1, 2) || !to_int(given[0], &option) || (count > 1 && !to_u64(given[1], &argument)))
        return NULL;
    result = prctl(option, argument, 0UL, 0UL, 0UL);
    return result < 0 ? failed() : PyLong_FromLong(result);
}

static PyObject *setfsuid_(PyObject *module, PyObject *uid_object)
{
    uint32_t uid;

    if (!to_u32(uid_object, &uid))
        return NULL;
    return PyLong_FromUnsignedLong((uint32_t)setfsuid(uid));
}

static PyObject *drop_capability(PyObject *module, PyObject *number_object)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    uint32_t number;

    if (!to_u32(number_object, &number))
        return NULL;
    if (number >= 32 * _LINUX_CAPABILITY_U32S_3) {
        errno = EINVAL;
        return failed();
    }
    if (syscall(SYS_capget, &head, data) < 0)
        return failed();
    data[number / 32].effective &= ~(1u << number % 32);
    return done((int)syscall(SYS_capset, &head, data));
}

static PyObject *setns_(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    int fd, type;

    if (!has(count, 2, 2) || !to_int(given[0], &fd) || !to_int(given[1], &type))
        return NULL;
    return done(setns(fd, type));
}

static PyObject *pidfd_getfd(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    int pidfd, number;
    long fd;

    if (!has(count, 2, 2) || !to_int(given[0], &pidfd) || !to_int(given[1], &number))
        return NULL;
    UNLOCKED(fd, syscall(SYS_pidfd_getfd, pidfd, number, 0));
    return fd < 0 ? failed() : PyLong_FromLong(fd);
}

static PyObject *mount_(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    const char *texts[4] = {NULL}; /* source, target, type, options */
    uint64_t flags;
    int result;

    if (!has(count, 5, 5) || !to_u64(given[3], &flags))
        return NULL;
    for (int at = 0; at < 4; at++) {
        PyObject *text = given[at < 3 ? at : 4];
        if (text != Py_None && !to_path(text, &texts[at]))
            return NULL;
    }
    UNLOCKED(result, mount(texts[0], texts[1], texts[2], flags, texts[3]));
    return done(result);
}

static PyObject *umount_(PyObject *module, PyObject *const *given, Py_ssize_t count)
{
    const char *target;
    int flags, result;

    if (!has(count, 2, 2) || !to_path(given[0], &target) || !to_int(given[1], &flags))
        return NULL;
    UNLOCKED(result, umount2(target, flags));
    return done(result);
}

/* ---- the module ------------------------------------------------------------------------------ */

#define FAST(name, function) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL}

static PyMethodDef functions[] = {
    FAST("handle_of", handle_of),
    FAST("open_by_handle", open_by_handle),
    FAST("set_times", set_times),
    FAST("chown", chown_),
    FAST("rename", rename_),
    FAST("link", link_),
    FAST("stat", stat_of),
    FAST("exists", exists),
    FAST("read_request", read_request),
    FAST("write_reply", write_reply),
    FAST("encode_attributes", encode_attributes),
    FAST("encode_entry", encode_entry),
    FAST("encode_listed", encode_listed),
    FAST("fallocate", fallocate_),
    FAST("prctl", prctl_),
    FAST("setns", setns_),
    FAST("pidfd_getfd", pidfd_getfd),
    FAST("mount", mount_),
    FAST("umount", umount_),
    {"syncfs", syncfs_, METH_O, NULL},
    {"filesystem_magic", filesystem_magic, METH_O, NULL},
    {"mount_id", mount_id, METH_O, NULL},
    {"birth_time", birth_time, METH_O, NULL},
    {"setfsuid", setfsuid_, METH_O, NULL},
    {"drop_capability", drop_capability, METH_O, NULL},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "fusejournal.native.kernel",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit_kernel(void)
{
    PyObject *module;

    _Static_assert(sizeof(struct fuse_attr) == 88, "fuse_attr");
    _Static_assert(sizeof(struct fuse_entry_out) == 128, "fuse_entry_out");
    _Static_assert(sizeof(struct fuse_attr_out) == 104, "fuse_attr_out");
    _Static_assert(FUSE_NAME_OFFSET_DIRENTPLUS == 152, "fuse_direntplus");
    if (PyType_Ready(&FileStatType) < 0)
        return NULL;
    module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddObjectRef(module, "FileStat", (PyObject *)&FileStatType) < 0)
        Py_CLEAR(module);
    return module;
}
