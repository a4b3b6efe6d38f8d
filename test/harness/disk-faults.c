// LD_PRELOAD: faults of a disk. The test maps a control file of 32-bit words and writes into it; a word says how many
// more times its fault strikes (0xffffffff: always). Only segment files are touched, or with INDEX the index's file.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

// In the order of DISK_FAULT (disk-node.ts).
enum { TEAR, MISDIRECT, LOSE, FLIP, FAIL_READ, FAIL_WRITE, FAIL_SYNC, STALL, NO_ROOM, INDEX, STRUCK, WORDS };

static volatile uint32_t* words;
static off_t last_write = -1;

__attribute__((constructor)) static void start(void) {
  const char* path = getenv("CAIRN_TEST_DISK_FAULTS");
  const int fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void* map = mmap(NULL, WORDS * 4, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (map != MAP_FAILED) words = map;
}

static int watched(int fd) {
  if (words == NULL) return 0;
  uint32_t any = 0;
  for (int word = 0; word < STRUCK; word++) any |= words[word];
  if (any == 0) return 0;
  char link[64];
  char path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return strstr(path, words[INDEX] != 0 ? "/index/data.mdb" : "/segment-") != NULL;
}

// Takes one strike of this fault, if there is one left.
static int strikes(int fault) {
  for (;;) {
    const uint32_t left = words[fault];
    if (left == 0) return 0;
    const uint32_t next = left == UINT32_MAX ? left : left - 1;
    if (!__sync_bool_compare_and_swap(&words[fault], left, next)) continue;
    __sync_fetch_and_add(&words[STRUCK], 1);
    return 1;
  }
}

static void stall(void) {
  const struct timespec moment = {0, 2000000};
  while (words[STALL] != 0) nanosleep(&moment, NULL);
}

static int failed(int error) {
  errno = error;
  return -1;
}

typedef ssize_t (*read_call)(int, void*, size_t, off_t);
typedef ssize_t (*write_call)(int, const void*, size_t, off_t);

static ssize_t faulty_read(read_call real, int fd, void* into, size_t bytes, off_t at) {
  if (!watched(fd)) return real(fd, into, bytes, at);
  stall();
  if (bytes > 4096 && strikes(FAIL_READ)) return failed(EIO);
  const ssize_t got = real(fd, into, bytes, at);
  // Past the header, so that the payload's hash has to find it.
  if (got > 4096 && strikes(FLIP)) ((uint8_t*)into)[got / 2] ^= 4;
  return got;
}

static ssize_t faulty_write(write_call real, int fd, const void* from, size_t bytes, off_t at) {
  if (!watched(fd)) return real(fd, from, bytes, at);
  stall();
  if (strikes(NO_ROOM)) return failed(ENOSPC);
  if (strikes(FAIL_WRITE)) return failed(EIO);
  if (at == 0 || bytes <= 4096) return real(fd, from, bytes, at);
  if (strikes(LOSE)) return (ssize_t)bytes;
  if (strikes(TEAR)) return real(fd, from, bytes / 2 / 4096 * 4096, at) < 0 ? -1 : (ssize_t)bytes;
  if (last_write > 0 && last_write != at && strikes(MISDIRECT)) return real(fd, from, bytes, last_write);
  last_write = at;
  return real(fd, from, bytes, at);
}

#define REAL(type, name) ((type)dlsym(RTLD_NEXT, name))

ssize_t pread(int fd, void* into, size_t bytes, off_t at) {
  return faulty_read(REAL(read_call, "pread"), fd, into, bytes, at);
}
ssize_t pread64(int fd, void* into, size_t bytes, off_t at) {
  return faulty_read(REAL(read_call, "pread64"), fd, into, bytes, at);
}
ssize_t pwrite(int fd, const void* from, size_t bytes, off_t at) {
  return faulty_write(REAL(write_call, "pwrite"), fd, from, bytes, at);
}
ssize_t pwrite64(int fd, const void* from, size_t bytes, off_t at) {
  return faulty_write(REAL(write_call, "pwrite64"), fd, from, bytes, at);
}
int fdatasync(int fd) {
  if (watched(fd)) {
    stall();
    if (strikes(FAIL_SYNC)) return failed(EIO);
  }
  return REAL(int (*)(int), "fdatasync")(fd);
}
int fallocate64(int fd, int mode, off_t at, off_t bytes) {
  if (watched(fd) && strikes(NO_ROOM)) return failed(ENOSPC);
  return REAL(int (*)(int, int, off_t, off_t), "fallocate64")(fd, mode, at, bytes);
}
