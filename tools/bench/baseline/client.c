// SPDX-License-Identifier: Apache-2.0
// client SOCKET region-read COUNT [REGION]     latency of COUNT reads of 4 bytes at offset 0: nanoseconds as JSON
// client SOCKET mig-read BYTES CHUNK           throughput of MIG_DATA_READ: bytes per second as JSON
// client SOCKET mig-write BYTES CHUNK [FILE]   throughput of MIG_DATA_WRITE; with FILE, of its content: a state that loads
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "protocol.h"

static uint8_t body[MAX_MESSAGE];
static uint16_t next_id;

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// Sends a request and receives its reply to `body`; the length of the reply's body. Any error ends the program.
static size_t call(int fd, enum command command, const void *first, size_t first_length, const void *second,
                   size_t second_length) {
  struct header request = {
      .id = next_id++,
      .command = (uint16_t)command,
      .size = (uint32_t)(sizeof request + first_length + second_length),
  };
  struct iovec parts[3] = {{&request, sizeof request}, {(void *)first, first_length}, {(void *)second, second_length}};
  if (send_all(fd, parts, second_length > 0 ? 3 : 2) != 0) die("send");
  struct header header;
  if (receive_header(fd, &header) != 0) die("receive");
  if (header.size < sizeof header || header.size > MAX_MESSAGE || header.id != request.id ||
      (header.flags & TYPE_MASK) != FLAG_REPLY) {
    fprintf(stderr, "bad reply to command %d\n", command);
    exit(1);
  }
  if (header.flags & FLAG_ERROR) {
    fprintf(stderr, "command %d failed: %s\n", command, strerror((int)header.error));
    exit(1);
  }
  size_t length = header.size - sizeof header;
  if (length > 0 && receive_all(fd, body, length) != 0) die("receive");
  return length;
}

static void negotiate(int fd) {
  static const char version[] =
      "\0\0\1\0{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\"pgsizes\":4096}}";
  call(fd, COMMAND_VERSION, version, sizeof version, NULL, 0);
}

static void set_state(int fd, uint32_t state) {
  struct device_feature_state feature = {
      .argsz = sizeof feature, .flags = FEATURE_SET | FEATURE_MIG_DEVICE_STATE, .device_state = state};
  call(fd, COMMAND_DEVICE_FEATURE, &feature, sizeof feature, NULL, 0);
}

static int compare(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

static void region_read(int fd, size_t count, uint32_t region) {
  uint64_t *times = malloc(count * sizeof *times);
  if (times == NULL) die("malloc");
  struct region_access access = {.offset = 0, .region = region, .count = 4};
  for (size_t i = 0; i < count / 10; i++) call(fd, COMMAND_REGION_READ, &access, sizeof access, NULL, 0);
  uint64_t sum = 0;
  for (size_t i = 0; i < count; i++) {
    uint64_t start = now();
    if (call(fd, COMMAND_REGION_READ, &access, sizeof access, NULL, 0) != sizeof access + access.count) {
      fprintf(stderr, "short register read\n");
      exit(1);
    }
    times[i] = now() - start;
    sum += times[i];
  }
  qsort(times, count, sizeof *times, compare);
  printf("{\"p50\":%llu,\"p99\":%llu,\"mean\":%llu}\n", (unsigned long long)times[count / 2],
         (unsigned long long)times[count * 99 / 100], (unsigned long long)(sum / count));
  free(times);
}

static void report(uint64_t bytes, uint64_t nanoseconds) {
  printf("{\"bytes\":%llu,\"bytesPerSecond\":%.0f}\n", (unsigned long long)bytes,
         (double)bytes * 1e9 / (double)nanoseconds);
}

static void mig_read(int fd, uint64_t bytes, uint32_t chunk) {
  set_state(fd, STATE_STOP_COPY);
  struct mig_data data = {.argsz = (uint32_t)sizeof data + chunk, .size = chunk};
  uint64_t start = now(), done = 0;
  while (done < bytes) {
    struct mig_data got;
    if (call(fd, COMMAND_MIG_DATA_READ, &data, sizeof data, NULL, 0) < sizeof got) die("short reply");
    memcpy(&got, body, sizeof got);
    if (got.size == 0) break;
    done += got.size;
  }
  report(done, now() - start);
  set_state(fd, STATE_RUNNING);
}

// The whole file in memory, touched, so that no page fault falls into what is measured; its length to `*bytes`.
static const uint8_t *map_file(const char *path, uint64_t *bytes) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  struct stat info;
  if (file < 0 || fstat(file, &info) != 0) die(path);
  void *content = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
  if (content == MAP_FAILED) die(path);
  close(file);
  *bytes = (uint64_t)info.st_size;
  return content;
}

static void mig_write(int fd, uint64_t bytes, uint32_t chunk, const char *path) {
  static uint8_t payload[MAX_DATA];
  memset(payload, 0xa5, sizeof payload);
  const uint8_t *content = path == NULL ? NULL : map_file(path, &bytes);
  set_state(fd, STATE_STOP);
  set_state(fd, STATE_RESUMING);
  uint64_t start = now(), done = 0;
  while (done < bytes) {
    uint32_t size = bytes - done < chunk ? (uint32_t)(bytes - done) : chunk;
    struct mig_data data = {.argsz = (uint32_t)sizeof data + size, .size = size};
    const uint8_t *part = content == NULL ? payload : content + done;
    call(fd, COMMAND_MIG_DATA_WRITE, &data, sizeof data, part, size);
    done += size;
  }
  report(done, now() - start);
}

int main(int argc, char **argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: client SOCKET region-read COUNT [REGION] | mig-read BYTES CHUNK | mig-write BYTES CHUNK [FILE]\n");
    return 2;
  }
  struct sockaddr_un address = address_of(argv[1]);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) die(argv[1]);
  negotiate(fd);
  uint64_t amount = strtoull(argv[3], NULL, 0);
  uint32_t fifth = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 0) : 0;
  if (strcmp(argv[2], "region-read") == 0) {
    if (amount == 0) return 2;
    region_read(fd, amount, fifth);
  } else if (fifth == 0 || fifth > MAX_DATA) {
    fprintf(stderr, "chunk must be 1 to %d bytes\n", MAX_DATA);
    return 2;
  } else if (strcmp(argv[2], "mig-read") == 0) {
    mig_read(fd, amount, fifth);
  } else if (strcmp(argv[2], "mig-write") == 0) {
    mig_write(fd, amount, fifth, argc > 5 ? argv[5] : NULL);
  } else {
    fprintf(stderr, "unknown test: %s\n", argv[2]);
    return 2;
  }
  close(fd);
  return 0;
}
