// SPDX-License-Identifier: Apache-2.0
// UNIX stream sockets that carry file descriptors (unix(7), SCM_RIGHTS).
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "reaper.h"
#include "support.h"

namespace devstate {
namespace {

/// Most fds that one message carries: SCM_MAX_FD of the kernel.
constexpr size_t kMaxFds = 253;
/// Most buffers that one sendmsg gathers.
constexpr uint32_t kMaxParts = 64;
/// Layout of the Int32Array that receives fds: [0] count, [1] 1 when some were lost (MSG_CTRUNC), [2...] the fds.
constexpr size_t kReceivedFdsStart = 2;

/// Fills `address` from argument `index`; 0 or the negative errno.
int Address(Arguments* args, size_t index, sockaddr_un* address) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (!args->String(index, address->sun_path, sizeof address->sun_path)) return -ENAMETOOLONG;
  return address->sun_path[0] == '\0' ? -EINVAL : 0;
}

int FailAndClose(int fd) {
  int error = errno;
  close(fd);
  return -error;
}

/// unixListen(path, mode, backlog) → fd
napi_value UnixListen(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  sockaddr_un address;
  int wrong = Address(&args, 0, &address);
  uint32_t mode = args.Unsigned(1);
  int backlog = args.Int(2, 0);
  if (args.failed()) return nullptr;
  if (wrong != 0) return Number(env, wrong);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return Result(env, -1);
  // Linux gives the new path the mode of the socket's own inode (less umask), so nobody can connect before it is set.
  if (fchmod(fd, mode) != 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      listen(fd, backlog) != 0) {
    return Number(env, FailAndClose(fd));
  }
  return Number(env, fd);
}

/// unixConnect(path) → fd; -EAGAIN when the listener's backlog is full.
napi_value UnixConnect(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  sockaddr_un address;
  int wrong = Address(&args, 0, &address);
  if (args.failed()) return nullptr;
  if (wrong != 0) return Number(env, wrong);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return Result(env, -1);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return Number(env, FailAndClose(fd));
  return Number(env, fd);
}

/// accept(fd) → connected fd
napi_value Accept(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  if (args.failed()) return nullptr;
  return Result(env, accept4(fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

/// socketPair(out: Int32Array(2)) → 0
napi_value SocketPair(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  size_t length = 0;
  int32_t* out = args.Int32Array(0, &length);
  if (args.failed()) return nullptr;
  if (length < 2) return Number(env, -EINVAL);
  return Result(env, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, out));
}

/// shutdown(fd, how) → 0
napi_value Shutdown(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  int how = args.Int(1, SHUT_RD, SHUT_RDWR);
  if (args.failed()) return nullptr;
  return Result(env, shutdown(fd, how));
}

/// peerCredentials(fd, out: Int32Array(3)) → 0; out is pid, uid, gid of who connected or listened.
napi_value PeerCredentials(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  size_t capacity = 0;
  int32_t* out = args.Int32Array(1, &capacity);
  if (args.failed()) return nullptr;
  if (capacity < 3) return Number(env, -EINVAL);
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return Result(env, -1);
  out[0] = credentials.pid;
  out[1] = static_cast<int32_t>(credentials.uid);
  out[2] = static_cast<int32_t>(credentials.gid);
  return Number(env, 0);
}

/// socketInfo(fd, out: Int32Array(3)) → 0; out is domain, type, 1 if it listens.
napi_value SocketInfo(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  size_t capacity = 0;
  int32_t* out = args.Int32Array(1, &capacity);
  if (args.failed()) return nullptr;
  constexpr int kOptions[] = {SO_DOMAIN, SO_TYPE, SO_ACCEPTCONN};
  if (capacity < sizeof kOptions / sizeof *kOptions) return Number(env, -EINVAL);
  for (int option : kOptions) {
    socklen_t length = sizeof *out;
    if (getsockopt(fd, SOL_SOCKET, option, out++, &length) != 0) return Result(env, -1);
  }
  return Number(env, 0);
}

/// The FORCE form passes the system's limit but needs CAP_NET_ADMIN.
napi_value SetBuffer(napi_env env, napi_callback_info info, int force, int option) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  int bytes = args.Int(1, 0);
  if (args.failed()) return nullptr;
  if (setsockopt(fd, SOL_SOCKET, force, &bytes, sizeof bytes) == 0) return Number(env, 0);
  return Result(env, setsockopt(fd, SOL_SOCKET, option, &bytes, sizeof bytes));
}

/// setSendBuffer(fd, bytes) → 0
napi_value SetSendBuffer(napi_env env, napi_callback_info info) {
  return SetBuffer(env, info, SO_SNDBUFFORCE, SO_SNDBUF);
}

/// setReceiveBuffer(fd, bytes) → 0
napi_value SetReceiveBuffer(napi_env env, napi_callback_info info) {
  return SetBuffer(env, info, SO_RCVBUFFORCE, SO_RCVBUF);
}

/// Points `parts` at bytes [start, end) of a Uint8Array or an array of them; the count, or -1 after throwing.
int GatherParts(Arguments* args, size_t index, size_t start, size_t end, iovec* parts) {
  uint32_t given = args->Parts(index, parts, kMaxParts);
  if (given > kMaxParts) args->Fail("at most 64 parts can be sent at once");
  if (args->failed()) return -1;
  int count = 0;
  for (uint32_t i = 0; i < given && end > 0; i++) {
    auto* data = static_cast<uint8_t*>(parts[i].iov_base);
    size_t length = parts[i].iov_len;
    size_t last = end < length ? end : length;
    if (start < last) {
      parts[count].iov_base = data + start;
      parts[count].iov_len = last - start;
      count++;
    }
    start = start > length ? start - length : 0;
    end -= last;
  }
  return count;
}

/// sendMessage(fd, parts, start, end, fds | null, fdCount) → bytes sent; the fds travel with the first. Never blocks.
napi_value SendMessage(napi_env env, napi_callback_info info) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  size_t start = args.Unsigned(2);
  size_t end = args.Unsigned(3);
  size_t capacity = 0;
  int32_t* fds = args.Int32Array(4, &capacity, true);
  size_t fdCount = args.Unsigned(5);
  if (args.failed()) return nullptr;
  iovec parts[kMaxParts];
  int partCount = GatherParts(&args, 1, start, end, parts);
  if (partCount < 0) return nullptr;
  if (fdCount > kMaxFds || fdCount > capacity) return Number(env, -EINVAL);

  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = static_cast<size_t>(partCount);
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))];
  if (fdCount > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fdCount * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fdCount * sizeof(int));
    memcpy(CMSG_DATA(header), fds, fdCount * sizeof(int));
  }
  return Result(env, sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
}

/// receiveMessage(fd, buffer, offset, length, received: Int32Array) → bytes, 0 at the end. Never blocks.
/// `received` is written whenever the result is not negative, also when fds were lost.
napi_value Receive(napi_env env, napi_callback_info info, int flags) {
  Arguments args(env, info);
  int fd = args.Fd(0);
  Bytes buffer = args.Uint8Array(1);
  size_t offset = args.Unsigned(2);
  size_t length = args.Unsigned(3);
  size_t capacity = 0;
  int32_t* received = args.Int32Array(4, &capacity);
  if (args.failed()) return nullptr;
  if (capacity < kReceivedFdsStart || offset > buffer.length || length > buffer.length - offset) {
    return Number(env, -EINVAL);
  }
  iovec part{buffer.data + offset, length};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC | flags);
  if (got < 0) return Result(env, -1);
  TakeFds(&message, received, capacity);
  return Number(env, got);
}

napi_value ReceiveMessage(napi_env env, napi_callback_info info) { return Receive(env, info, 0); }

/// As receiveMessage, and all of it stays in the socket: the fds are duplicates.
napi_value PeekMessage(napi_env env, napi_callback_info info) { return Receive(env, info, MSG_PEEK); }

/// A datagram socket bound to `path` (with `mode`) or connected to it. A path that begins with @ is an abstract one, as
/// service managers write it.
napi_value Datagram(napi_env env, napi_callback_info info, bool listens) {
  Arguments args(env, info);
  sockaddr_un address;
  int wrong = Address(&args, 0, &address);
  uint32_t mode = listens ? args.Unsigned(1) : 0;
  if (args.failed()) return nullptr;
  if (wrong != 0) return Number(env, wrong);
  socklen_t length = sizeof address;
  if (address.sun_path[0] == '@') {
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + strlen(address.sun_path));
    address.sun_path[0] = '\0';
  }
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return Result(env, -1);
  auto* name = reinterpret_cast<sockaddr*>(&address);
  bool made = listens ? fchmod(fd, mode) == 0 && bind(fd, name, length) == 0 : connect(fd, name, length) == 0;
  return Number(env, made ? fd : FailAndClose(fd));
}

/// datagramListen(path, mode) → fd
napi_value DatagramListen(napi_env env, napi_callback_info info) { return Datagram(env, info, true); }

/// datagramConnect(path) → fd
napi_value DatagramConnect(napi_env env, napi_callback_info info) { return Datagram(env, info, false); }

}  // namespace

void TakeFds(msghdr* message, int32_t* out, size_t capacity) {
  int32_t count = 0;
  bool lost = (message->msg_flags & MSG_CTRUNC) != 0;
  for (cmsghdr* header = CMSG_FIRSTHDR(message); header != nullptr; header = CMSG_NXTHDR(message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t given = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < given; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      if (kReceivedFdsStart + static_cast<size_t>(count) < capacity) {
        out[kReceivedFdsStart + static_cast<size_t>(count++)] = fd;
      } else {
        CloseLater(fd, 0);
        lost = true;
      }
    }
  }
  out[0] = count;
  out[1] = lost ? 1 : 0;
}

void InitSocket(napi_env env, napi_value exports) {
  Export(env, exports, "unixListen", UnixListen);
  Export(env, exports, "unixConnect", UnixConnect);
  Export(env, exports, "accept", Accept);
  Export(env, exports, "socketPair", SocketPair);
  Export(env, exports, "shutdown", Shutdown);
  Export(env, exports, "peerCredentials", PeerCredentials);
  Export(env, exports, "socketInfo", SocketInfo);
  Export(env, exports, "setSendBuffer", SetSendBuffer);
  Export(env, exports, "setReceiveBuffer", SetReceiveBuffer);
  Export(env, exports, "sendMessage", SendMessage);
  Export(env, exports, "receiveMessage", ReceiveMessage);
  Export(env, exports, "peekMessage", PeekMessage);
  Export(env, exports, "datagramListen", DatagramListen);
  Export(env, exports, "datagramConnect", DatagramConnect);
}

}  // namespace devstate
