// SPDX-License-Identifier: Apache-2.0
// The part of vfio-user that the baseline speaks, and the calls both programs share. Plain C, blocking sockets: what a
// competent programmer writes first, the measure that devstate is held against.
#ifndef DEVSTATE_BASELINE_PROTOCOL_H
#define DEVSTATE_BASELINE_PROTOCOL_H

#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum command {
  COMMAND_VERSION = 1,
  COMMAND_DEVICE_GET_INFO = 4,
  COMMAND_REGION_READ = 9,
  COMMAND_REGION_WRITE = 10,
  COMMAND_DEVICE_FEATURE = 16,
  COMMAND_MIG_DATA_READ = 17,
  COMMAND_MIG_DATA_WRITE = 18,
};

enum { FLAG_REPLY = 0x1, FLAG_NO_REPLY = 0x10, FLAG_ERROR = 0x20, TYPE_MASK = 0xf };
enum { FEATURE_MIG_DEVICE_STATE = 2, FEATURE_SET = 0x20000 };
enum { STATE_STOP = 1, STATE_RUNNING = 2, STATE_STOP_COPY = 3, STATE_RESUMING = 4 };
enum { MAX_DATA = 1 << 20, MAX_MESSAGE = MAX_DATA + 64, MAX_FDS = 16 };

struct header {
  uint16_t id;
  uint16_t command;
  uint32_t size;
  uint32_t flags;
  uint32_t error;
};

struct region_access {
  uint64_t offset;
  uint32_t region;
  uint32_t count;
};

struct device_feature_state {
  uint32_t argsz;
  uint32_t flags;
  uint32_t device_state;
  uint32_t data_fd;
};

struct mig_data {
  uint32_t argsz;
  uint32_t size;
};

static inline void die(const char *what) {
  perror(what);
  exit(1);
}

static inline struct sockaddr_un address_of(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) {
    fprintf(stderr, "path too long: %s\n", path);
    exit(2);
  }
  strcpy(address.sun_path, path);
  return address;
}

// Receives exactly `length` bytes; 0, or -1 at the end of the stream or on an error.
static inline int receive_all(int fd, void *data, size_t length) {
  for (size_t done = 0; done < length;) {
    ssize_t got = recv(fd, (char *)data + done, length - done, MSG_WAITALL);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return -1;
    done += (size_t)got;
  }
  return 0;
}

// Receives a header with the fds that may come with it, which this baseline has no use for.
static inline int receive_header(int fd, struct header *header) {
  char control[CMSG_SPACE(MAX_FDS * sizeof(int))];
  struct iovec part = {.iov_base = header, .iov_len = sizeof *header};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  ssize_t got;
  do got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  if (got <= 0) return -1;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c != NULL; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = 0; at < c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
      int received;
      memcpy(&received, CMSG_DATA(c) + at, sizeof received);
      close(received);
    }
  }
  return receive_all(fd, (char *)header + got, sizeof *header - (size_t)got);
}

// Sends a message of up to three parts whole; 0 or -1.
static inline int send_all(int fd, struct iovec *parts, size_t count) {
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
  for (;;) {
    ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return -1;
    while (message.msg_iovlen > 0 && (size_t)sent >= message.msg_iov->iov_len) {
      sent -= (ssize_t)message.msg_iov->iov_len;
      message.msg_iov++;
      message.msg_iovlen--;
    }
    if (message.msg_iovlen == 0) return 0;
    message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + sent;
    message.msg_iov->iov_len -= (size_t)sent;
  }
}

#endif
