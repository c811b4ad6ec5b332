// SPDX-License-Identifier: Apache-2.0
/*
 * The guest's witness in the migration tests: it writes blocks that can be told apart and checked, reads earlier ones
 * back, and says on stdout what it saw. A lost, torn, stale or misplaced block cannot go unnoticed.
 *
 *   blockwriter DEVICE BLOCKS DEPTH SYNC_EVERY
 *
 * Block number `sequence` goes to position `sequence % BLOCKS`, so that what every position must hold follows from the
 * last sequence number alone. DEPTH writes are in flight at a time; fsync runs every SYNC_EVERY blocks; after every
 * round one random earlier block is read and checked. All I/O is O_DIRECT.
 *
 * Lines it prints:
 *   ready <blocks>
 *   tick <last sequence> <blocks verified> <longest round, ms>       about 5 times a second
 *   GAP <expected sequence> <found> | BAD <sequence> | EIO <what> <sequence> <errno>
 *   done <last sequence> <first sequence still on the device> <errors>
 * Lines it obeys on stdin:
 *   stop                      finish the round, fsync, print `done`, exit
 *   prepare LENGTH            make and clear the buffer for readhash; prints `prepared LENGTH`
 *   readhash OFFSET LENGTH    read the device into the buffer (a fresh one unless prepared), keep it; prints `hash CRC32 OFFSET LENGTH`
 *   recheck                   hash the kept buffer again; prints `rehash CRC32`
 *   dmesg                     print the kernel's warnings and errors as `dmesg …`, then `dmesg-end`
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_BYTES 4096
#define MAX_DEPTH 64
#define MAGIC 0x6b6c62737665640aULL /* "\ndevsblk" in memory */

/* Little endian, as the machine is. crc32 is that of the whole block with the crc field zero. */
struct block {
	uint64_t magic;
	uint64_t sequence;
	uint64_t position;
	uint32_t pass;
	uint32_t crc32;
	uint8_t pattern[BLOCK_BYTES - 32];
};

static uint32_t crc_table[256];
static int device;
static uint64_t blocks;
static uint64_t errors;
static uint64_t verified;
static uint8_t *kept;
static size_t kept_length;

static void init_crc(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int bit = 0; bit < 8; bit++)
			c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
		crc_table[i] = c;
	}
}

static uint32_t crc32(const void *data, size_t length)
{
	const uint8_t *byte = data;
	uint32_t c = 0xffffffffu;
	while (length--)
		c = crc_table[(c ^ *byte++) & 0xff] ^ (c >> 8);
	return c ^ 0xffffffffu;
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static double now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void *pages(size_t length)
{
	void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		printf("EIO mmap 0 %d\n", errno);
		exit(1);
	}
	return memory;
}

static void io_error(const char *what, uint64_t sequence, int error)
{
	/* A dead device must not flood the console. */
	if (errors++ < 100)
		printf("EIO %s %llu %d\n", what, (unsigned long long)sequence, error);
}

static void fill(struct block *block, uint64_t sequence)
{
	uint64_t state = sequence * 0x9e3779b97f4a7c15ULL + 1;
	block->magic = MAGIC;
	block->sequence = sequence;
	block->position = sequence % blocks;
	block->pass = sequence / blocks;
	block->crc32 = 0;
	for (size_t i = 0; i < sizeof(block->pattern); i += 8) {
		uint64_t word = next_random(&state);
		memcpy(block->pattern + i, &word, 8);
	}
	block->crc32 = crc32(block, BLOCK_BYTES);
}

static void verify(struct block *block, uint64_t sequence)
{
	ssize_t count = pread(device, block, BLOCK_BYTES, sequence % blocks * BLOCK_BYTES);
	if (count != BLOCK_BYTES) {
		io_error("read", sequence, count < 0 ? errno : 0);
		return;
	}
	uint32_t stored = block->crc32;
	block->crc32 = 0;
	if (block->magic != MAGIC || crc32(block, BLOCK_BYTES) != stored) {
		if (errors++ < 100)
			printf("BAD %llu\n", (unsigned long long)sequence);
	} else if (block->sequence != sequence || block->position != sequence % blocks) {
		if (errors++ < 100)
			printf("GAP %llu %llu\n", (unsigned long long)sequence, (unsigned long long)block->sequence);
	} else {
		verified++;
	}
}

/* Writes `depth` blocks from `sequence` on, all in flight at once. */
static void write_round(aio_context_t context, struct block *buffers, uint64_t sequence, int depth)
{
	struct iocb requests[MAX_DEPTH], *pointers[MAX_DEPTH];
	struct io_event events[MAX_DEPTH];
	memset(requests, 0, sizeof requests);
	for (int i = 0; i < depth; i++) {
		fill(&buffers[i], sequence + i);
		requests[i].aio_data = sequence + i;
		requests[i].aio_lio_opcode = IOCB_CMD_PWRITE;
		requests[i].aio_fildes = device;
		requests[i].aio_buf = (uintptr_t)&buffers[i];
		requests[i].aio_nbytes = BLOCK_BYTES;
		requests[i].aio_offset = (sequence + i) % blocks * BLOCK_BYTES;
		pointers[i] = &requests[i];
	}
	int submitted = syscall(SYS_io_submit, context, depth, pointers);
	if (submitted != depth)
		io_error("submit", sequence, submitted < 0 ? errno : 0);
	if (submitted <= 0)
		return;
	int completed = syscall(SYS_io_getevents, context, submitted, submitted, events, NULL);
	for (int i = 0; i < completed; i++)
		if (events[i].res != BLOCK_BYTES)
			io_error("write", events[i].data, -(int)events[i].res);
	if (completed != submitted)
		io_error("complete", sequence, completed < 0 ? errno : 0);
}

static void prepare(size_t length)
{
	if (kept)
		munmap(kept, kept_length);
	kept = pages(length);
	kept_length = length;
}

static void read_hash(uint64_t offset, size_t length)
{
	if (kept_length != length)
		prepare(length);
	for (size_t done = 0; done < length;) {
		ssize_t count = pread(device, kept + done, length - done, offset + done);
		if (count <= 0) {
			io_error("readhash", offset + done, count < 0 ? errno : 0);
			return;
		}
		done += count;
	}
	printf("hash %08x %llu %zu\n", crc32(kept, length), (unsigned long long)offset, length);
}

static void print_dmesg(void)
{
	static char log[1 << 20];
	int length = klogctl(3 /* SYSLOG_ACTION_READ_ALL */, log, sizeof log - 1);
	log[length > 0 ? length : 0] = 0;
	for (char *line = strtok(log, "\n"); line; line = strtok(NULL, "\n")) {
		int priority;
		if (sscanf(line, "<%d>", &priority) == 1 && (priority & 7) <= 4 /* KERN_WARNING */)
			printf("dmesg %s\n", line);
	}
	printf("dmesg-end\n");
}

/* Obeys the lines that have come in; returns whether one was `stop`. */
static int obey(void)
{
	static char input[4096];
	static size_t used;
	struct pollfd ready = { .fd = 0, .events = POLLIN };
	if (poll(&ready, 1, 0) <= 0)
		return 0;
	ssize_t count = read(0, input + used, sizeof input - 1 - used);
	if (count <= 0)
		return 0;
	used += count;
	input[used] = 0;
	int stop = 0;
	for (char *end; (end = strpbrk(input, "\r\n"));) {
		unsigned long long offset, length;
		*end = 0;
		if (!strcmp(input, "stop")) {
			stop = 1;
		} else if (!strcmp(input, "recheck")) {
			printf("rehash %08x\n", crc32(kept, kept_length));
		} else if (!strcmp(input, "dmesg")) {
			print_dmesg();
		} else if (sscanf(input, "prepare %llu", &length) == 1) {
			prepare(length);
			memset(kept, 0, length);
			printf("prepared %llu\n", length);
		} else if (sscanf(input, "readhash %llu %llu", &offset, &length) == 2) {
			read_hash(offset, length);
		}
		used -= end + 1 - input;
		memmove(input, end + 1, used + 1);
	}
	if (used == sizeof input - 1)
		used = 0;
	return stop;
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: blockwriter DEVICE BLOCKS DEPTH SYNC_EVERY\n");
		return 2;
	}
	blocks = strtoull(argv[2], NULL, 10);
	int depth = atoi(argv[3]);
	uint64_t sync_every = strtoull(argv[4], NULL, 10);
	if (depth < 1 || depth > MAX_DEPTH || blocks < (uint64_t)depth || sync_every == 0)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	init_crc();
	device = open(argv[1], O_RDWR | O_DIRECT);
	aio_context_t context = 0;
	if (device < 0 || syscall(SYS_io_setup, MAX_DEPTH, &context) < 0) {
		printf("EIO open 0 %d\n", errno);
		return 1;
	}
	struct block *buffers = pages(depth * BLOCK_BYTES);
	struct block *scratch = pages(BLOCK_BYTES);
	uint64_t random = 88172645463325252ULL, next = 0, unsynced = 0;
	double longest = 0, last_tick = now_ms();
	printf("ready %llu\n", (unsigned long long)blocks);
	for (int stop = 0; !stop; stop = obey()) {
		double start = now_ms();
		write_round(context, buffers, next, depth);
		next += depth;
		unsynced += depth;
		if (unsynced >= sync_every) {
			unsynced = 0;
			if (fsync(device) < 0)
				io_error("fsync", next - 1, errno);
		}
		uint64_t first = next > blocks ? next - blocks : 0;
		verify(scratch, first + next_random(&random) % (next - first));
		double end = now_ms();
		if (end - start > longest)
			longest = end - start;
		if (end - last_tick >= 200) {
			printf("tick %llu %llu %.1f\n", (unsigned long long)next - 1, (unsigned long long)verified, longest);
			longest = 0;
			last_tick = end;
		}
	}
	if (fsync(device) < 0)
		io_error("fsync", next - 1, errno);
	printf("done %llu %llu %llu\n", (unsigned long long)next - 1,
	       (unsigned long long)(next > blocks ? next - blocks : 0), (unsigned long long)errors);
	return errors ? 1 : 0;
}
