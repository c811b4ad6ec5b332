// SPDX-License-Identifier: Apache-2.0
// What memory allows: chunks are copied into memory that two processes could share, and out of it again.
//
// copy CHUNK BYTES      bytes per second as JSON, each byte counted once
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: copy CHUNK BYTES\n");
		return 2;
	}
	size_t chunk = strtoull(argv[1], NULL, 10), bytes = strtoull(argv[2], NULL, 10);
	int fd = memfd_create("copy", 0);
	if (fd < 0 || ftruncate(fd, chunk) != 0)
		return 1;
	// Two mappings, as of two processes.
	char *in = mmap(NULL, chunk, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *out = mmap(NULL, chunk, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *source = malloc(chunk), *target = malloc(chunk);
	if (in == MAP_FAILED || out == MAP_FAILED || !source || !target)
		return 1;
	memset(source, 0x5a, chunk);
	memset(target, 0, chunk);
	struct timespec start, end;
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (size_t done = 0; done < bytes; done += chunk) {
		source[done / chunk % chunk]++;
		memcpy(in, source, chunk);
		memcpy(target, out, chunk);
		__asm__ volatile("" ::"r"(target) : "memory");
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	double seconds = end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9;
	printf("{\"bytes\":%zu,\"bytesPerSecond\":%.0f}\n", bytes, bytes / seconds);
	return 0;
}
