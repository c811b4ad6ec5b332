// SPDX-License-Identifier: Apache-2.0
// server SOCKET [STATE_BYTES]: a device with one register block and STATE_BYTES (1 GiB unless given) of migration state.
// Serves one client after the other until it is killed.
#include "protocol.h"

struct device {
  uint8_t registers[4096];
  uint8_t state[MAX_DATA];  // Read again and again: the state's content does not matter here.
  uint64_t state_bytes;
  uint64_t state_left;
};

static const char VERSION_REPLY[] =
    "\0\0\1\0{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\"pgsizes\":4096}}";

static struct device device;
static uint8_t body[MAX_MESSAGE];

static int reply(int fd, const struct header *request, int error, const void *first, size_t first_length,
                 const void *second, size_t second_length) {
  if (request->flags & FLAG_NO_REPLY) return 0;
  if (error != 0) first_length = second_length = 0;
  struct header header = {
      .id = request->id,
      .command = request->command,
      .size = (uint32_t)(sizeof header + first_length + second_length),
      .flags = FLAG_REPLY | (error != 0 ? FLAG_ERROR : 0),
      .error = (uint32_t)error,
  };
  struct iovec parts[3] = {{&header, sizeof header}, {(void *)first, first_length}, {(void *)second, second_length}};
  return send_all(fd, parts, second_length > 0 ? 3 : first_length > 0 ? 2 : 1);
}

static int region_access(int fd, const struct header *request, size_t length) {
  struct region_access access;
  if (length < sizeof access) return reply(fd, request, EINVAL, NULL, 0, NULL, 0);
  memcpy(&access, body, sizeof access);
  if (access.region != 0 || access.count > sizeof device.registers ||
      access.offset > sizeof device.registers - access.count) {
    return reply(fd, request, EINVAL, NULL, 0, NULL, 0);
  }
  if (request->command == COMMAND_REGION_READ) {
    return reply(fd, request, 0, &access, sizeof access, device.registers + access.offset, access.count);
  }
  if (length < sizeof access + access.count) return reply(fd, request, EINVAL, NULL, 0, NULL, 0);
  memcpy(device.registers + access.offset, body + sizeof access, access.count);
  return reply(fd, request, 0, &access, sizeof access, NULL, 0);
}

static int migration_data(int fd, const struct header *request, size_t length) {
  struct mig_data data;
  if (length < sizeof data) return reply(fd, request, EINVAL, NULL, 0, NULL, 0);
  memcpy(&data, body, sizeof data);
  if (data.size > MAX_DATA) return reply(fd, request, EINVAL, NULL, 0, NULL, 0);
  if (request->command == COMMAND_MIG_DATA_READ) {
    if (data.size > device.state_left) data.size = (uint32_t)device.state_left;
    device.state_left -= data.size;
    data.argsz = (uint32_t)sizeof data + data.size;
    return reply(fd, request, 0, &data, sizeof data, device.state, data.size);
  }
  if (length < sizeof data + data.size) return reply(fd, request, EINVAL, NULL, 0, NULL, 0);
  memcpy(device.state, body + sizeof data, data.size);
  return reply(fd, request, 0, NULL, 0, NULL, 0);
}

static int device_feature(int fd, const struct header *request, size_t length) {
  if (length > MAX_DATA) return reply(fd, request, EINVAL, NULL, 0, NULL, 0);
  device.state_left = device.state_bytes;
  return reply(fd, request, 0, body, length, NULL, 0);
}

static int serve_message(int fd, const struct header *request, size_t length) {
  switch (request->command) {
    case COMMAND_VERSION:
      return reply(fd, request, 0, VERSION_REPLY, sizeof VERSION_REPLY, NULL, 0);
    case COMMAND_DEVICE_GET_INFO: {
      /* argsz, flags, regions, interrupts: a relay in front of it asks. */
      const uint32_t info[4] = {sizeof info, 0, 0, 0};
      return reply(fd, request, 0, info, sizeof info, NULL, 0);
    }
    case COMMAND_REGION_READ:
    case COMMAND_REGION_WRITE:
      return region_access(fd, request, length);
    case COMMAND_DEVICE_FEATURE:
      return device_feature(fd, request, length);
    case COMMAND_MIG_DATA_READ:
    case COMMAND_MIG_DATA_WRITE:
      return migration_data(fd, request, length);
    default:
      return reply(fd, request, EINVAL, NULL, 0, NULL, 0);
  }
}

static void serve(int fd) {
  struct header request;
  while (receive_header(fd, &request) == 0) {
    if (request.size < sizeof request || request.size > MAX_MESSAGE) return;
    size_t length = request.size - sizeof request;
    if (length > 0 && receive_all(fd, body, length) != 0) return;
    if (serve_message(fd, &request, length) != 0) return;
  }
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: server SOCKET [STATE_BYTES]\n");
    return 2;
  }
  device.state_bytes = argc > 2 ? strtoull(argv[2], NULL, 0) : 1ull << 30;
  memset(device.state, 0x5a, sizeof device.state);
  struct sockaddr_un address = address_of(argv[1]);
  unlink(argv[1]);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1) != 0) {
    die(argv[1]);
  }
  printf("listening\n");
  fflush(stdout);
  for (;;) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) die("accept");
    serve(fd);
    close(fd);
  }
}
