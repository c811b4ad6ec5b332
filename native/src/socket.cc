// SPDX-License-Identifier: Apache-2.0
// UNIX stream sockets that carry file descriptors (unix(7), SCM_RIGHTS).
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "reaper.h"
#include "support.h"
#include "unique-fd.h"

namespace devstate {
namespace {

/// Most fds that one message carries: SCM_MAX_FD of the kernel.
constexpr size_t kMaxFds = 253;
/// Most buffers that one sendmsg gathers.
constexpr uint32_t kMaxParts = 64;
/// Layout of the Int32Array that receives fds: [0] count, [1] 1 when some were lost (MSG_CTRUNC), [2...] the fds.
constexpr size_t kReceivedFdsStart = 2;

/// Fills `address` from argument `index`; 0 or the negative errno.
int Address(const Args& args, size_t index, sockaddr_un* address) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (!args.String(index, address->sun_path, sizeof address->sun_path)) return -ENAMETOOLONG;
  return address->sun_path[0] == '\0' ? -EINVAL : 0;
}

UniqueFd NewSocket(int type) { return UniqueFd(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)); }

/// unixListen(path, mode, backlog) → fd
Napi::Value UnixListen(const Napi::CallbackInfo& info) {
  Args args(info);
  sockaddr_un address;
  int wrong = Address(args, 0, &address);
  uint32_t mode = args.Unsigned(1);
  int backlog = args.Int(2, 0);
  if (wrong != 0) return Number(info.Env(), wrong);
  UniqueFd made = NewSocket(SOCK_STREAM);
  if (made.Get() < 0) return Result(info.Env(), -1);
  // Linux gives the new path the mode of the socket's own inode (less umask), so no one can connect before it is set.
  if (fchmod(made.Get(), mode) != 0 ||
      bind(made.Get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      listen(made.Get(), backlog) != 0) {
    return Result(info.Env(), -1);
  }
  return Give(info.Env(), std::move(made));
}

/// unixConnect(path) → fd; -EAGAIN when the listener's backlog is full.
Napi::Value UnixConnect(const Napi::CallbackInfo& info) {
  Args args(info);
  sockaddr_un address;
  int wrong = Address(args, 0, &address);
  if (wrong != 0) return Number(info.Env(), wrong);
  UniqueFd made = NewSocket(SOCK_STREAM);
  if (made.Get() < 0) return Result(info.Env(), -1);
  if (connect(made.Get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return Result(info.Env(), -1);
  return Give(info.Env(), std::move(made));
}

/// accept(fd) → connected fd
Napi::Value Accept(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  return Give(info.Env(), UniqueFd(accept4(fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)));
}

/// socketPair(out: Int32Array(2)) → 0
Napi::Value SocketPair(const Napi::CallbackInfo& info) {
  Args args(info);
  size_t length = 0;
  int32_t* out = args.Int32Array(0, &length);
  if (length < 2) return Number(info.Env(), -EINVAL);
  return Result(info.Env(), socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, out));
}

/// shutdown(fd, how) → 0
Napi::Value Shutdown(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  int how = args.Int(1, SHUT_RD, SHUT_RDWR);
  return Result(info.Env(), shutdown(fd, how));
}

/// peerCredentials(fd, out: Int32Array(3)) → 0; out is pid, uid, gid of who connected or listened.
Napi::Value PeerCredentials(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  size_t capacity = 0;
  int32_t* out = args.Int32Array(1, &capacity);
  if (capacity < 3) return Number(info.Env(), -EINVAL);
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return Result(info.Env(), -1);
  out[0] = credentials.pid;
  out[1] = static_cast<int32_t>(credentials.uid);
  out[2] = static_cast<int32_t>(credentials.gid);
  return Number(info.Env(), 0);
}

/// socketInfo(fd, out: Int32Array(3)) → 0; out is domain, type, 1 if it listens.
Napi::Value SocketInfo(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  size_t capacity = 0;
  int32_t* out = args.Int32Array(1, &capacity);
  constexpr int kOptions[] = {SO_DOMAIN, SO_TYPE, SO_ACCEPTCONN};
  if (capacity < sizeof kOptions / sizeof *kOptions) return Number(info.Env(), -EINVAL);
  for (int option : kOptions) {
    socklen_t length = sizeof *out;
    if (getsockopt(fd, SOL_SOCKET, option, out++, &length) != 0) return Result(info.Env(), -1);
  }
  return Number(info.Env(), 0);
}

/// The FORCE form passes the system's limit but needs CAP_NET_ADMIN.
Napi::Value SetBuffer(const Napi::CallbackInfo& info, int force, int option) {
  Args args(info);
  int fd = args.Fd(0);
  int bytes = args.Int(1, 0);
  if (setsockopt(fd, SOL_SOCKET, force, &bytes, sizeof bytes) == 0) return Number(info.Env(), 0);
  return Result(info.Env(), setsockopt(fd, SOL_SOCKET, option, &bytes, sizeof bytes));
}

/// setSendBuffer(fd, bytes) → 0
Napi::Value SetSendBuffer(const Napi::CallbackInfo& info) {
  return SetBuffer(info, SO_SNDBUFFORCE, SO_SNDBUF);
}

/// setReceiveBuffer(fd, bytes) → 0
Napi::Value SetReceiveBuffer(const Napi::CallbackInfo& info) {
  return SetBuffer(info, SO_RCVBUFFORCE, SO_RCVBUF);
}

/// Points `parts` at bytes [start, end) of a Uint8Array or an array of them; the count.
size_t GatherParts(const Args& args, size_t index, size_t start, size_t end, iovec* parts) {
  uint32_t given = args.Parts(index, parts, kMaxParts);
  if (given > kMaxParts) args.Fail(index, "at most 64 parts");
  size_t count = 0;
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
Napi::Value SendMessage(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0);
  size_t start = args.Unsigned(2);
  size_t end = args.Unsigned(3);
  size_t fdCount = args.Unsigned(5);
  iovec parts[kMaxParts];
  size_t partCount = GatherParts(args, 1, start, end, parts);
  // After the parts: a getter among those could take this array's memory away.
  size_t capacity = 0;
  int32_t* fds = args.Int32Array(4, &capacity, true);
  if (fdCount > kMaxFds || fdCount > capacity) return Number(info.Env(), -EINVAL);

  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = partCount;
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
  return Result(info.Env(), sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
}

/// receiveMessage(fd, buffer, offset, length, received: Int32Array) → bytes, 0 at the end. Never blocks.
/// `received` is written whenever the result is not negative, also when fds were lost.
Napi::Value Receive(const Napi::CallbackInfo& info, int flags) {
  Args args(info);
  int fd = args.Fd(0);
  Bytes buffer = args.Uint8Array(1);
  size_t offset = args.Unsigned(2);
  size_t length = args.Unsigned(3);
  size_t capacity = 0;
  int32_t* received = args.Int32Array(4, &capacity);
  if (capacity < kReceivedFdsStart || offset > buffer.length || length > buffer.length - offset) {
    return Number(info.Env(), -EINVAL);
  }
  iovec part{buffer.data + offset, length};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC | flags);
  if (got < 0) return Result(info.Env(), -1);
  TakeFds(&message, received, capacity);
  return Number(info.Env(), got);
}

Napi::Value ReceiveMessage(const Napi::CallbackInfo& info) { return Receive(info, 0); }

/// As receiveMessage, and all of it stays in the socket: the fds are duplicates.
Napi::Value PeekMessage(const Napi::CallbackInfo& info) { return Receive(info, MSG_PEEK); }

/// A datagram socket bound to `path` (with `mode`) or connected to it. A path that begins with @ is an abstract one, as
/// service managers write it.
Napi::Value Datagram(const Napi::CallbackInfo& info, bool listens) {
  Args args(info);
  sockaddr_un address;
  int wrong = Address(args, 0, &address);
  uint32_t mode = listens ? args.Unsigned(1) : 0;
  if (wrong != 0) return Number(info.Env(), wrong);
  socklen_t length = sizeof address;
  if (address.sun_path[0] == '@') {
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + strlen(address.sun_path));
    address.sun_path[0] = '\0';
  }
  UniqueFd made = NewSocket(SOCK_DGRAM);
  if (made.Get() < 0) return Result(info.Env(), -1);
  auto* name = reinterpret_cast<sockaddr*>(&address);
  bool ready = listens ? fchmod(made.Get(), mode) == 0 && bind(made.Get(), name, length) == 0
                       : connect(made.Get(), name, length) == 0;
  return ready ? Give(info.Env(), std::move(made)) : Result(info.Env(), -1);
}

/// datagramListen(path, mode) → fd
Napi::Value DatagramListen(const Napi::CallbackInfo& info) { return Datagram(info, true); }

/// datagramConnect(path) → fd
Napi::Value DatagramConnect(const Napi::CallbackInfo& info) { return Datagram(info, false); }

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

void InitSocket(Napi::Object exports) {
  Export<UnixListen>(exports, "unixListen");
  Export<UnixConnect>(exports, "unixConnect");
  Export<Accept>(exports, "accept");
  Export<SocketPair>(exports, "socketPair");
  Export<Shutdown>(exports, "shutdown");
  Export<PeerCredentials>(exports, "peerCredentials");
  Export<SocketInfo>(exports, "socketInfo");
  Export<SetSendBuffer>(exports, "setSendBuffer");
  Export<SetReceiveBuffer>(exports, "setReceiveBuffer");
  Export<SendMessage>(exports, "sendMessage");
  Export<ReceiveMessage>(exports, "receiveMessage");
  Export<PeekMessage>(exports, "peekMessage");
  Export<DatagramListen>(exports, "datagramListen");
  Export<DatagramConnect>(exports, "datagramConnect");
}

}  // namespace devstate
