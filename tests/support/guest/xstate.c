/* Preloaded into the user-mode kernel: lets it run where the processor's extended state is longer
 * than the 2,696 bytes that Linux 6.1 keeps for each process of its own (with AMX it is 11,008).
 *
 * The host takes a process's state only whole (PTRACE_SETREGSET answers EFAULT otherwise). What the
 * user-mode kernel has is therefore laid over an empty state of the full length, with the components
 * that it does not know marked as unused: no process can use AMX without asking its kernel first,
 * and this kernel would say no.
 *
 * Source: the host kernel's arch/x86/kernel/fpu/regset.c; ptrace(2); the state's layout is in
 * Intel's manual, volume 1, chapter 13: the 64-byte header with the map of components in use lies
 * at 512. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define IN_USE_OFFSET 512
#define KNOWN_COMPONENTS 0x2ffu /* x87, SSE, AVX, MPX, AVX-512, PKRU */

/* Static, for a kernel stack has 16 KiB. Only the one kernel thread gets here. */
static char state[65536] __attribute__((aligned(64)));
static size_t state_bytes;

typedef long ptrace_function(enum __ptrace_request, ...);

long ptrace(enum __ptrace_request request, ...)
{
	static ptrace_function *real;
	va_list list;

	va_start(list, request);
	int pid = va_arg(list, int);
	void *address = va_arg(list, void *);
	void *data = va_arg(list, void *);
	va_end(list);

	if (!real)
		real = (ptrace_function *)dlsym(RTLD_NEXT, "ptrace");
	if (request != PTRACE_SETREGSET || (uintptr_t)address != NT_X86_XSTATE)
		return real(request, pid, address, data);

	struct iovec *given = data, whole = {state, sizeof state};
	if (!state_bytes) {
		if (real(PTRACE_GETREGSET, pid, address, &whole) < 0)
			return -1;
		state_bytes = whole.iov_len;
		memset(state, 0, sizeof state);
	}
	if (given->iov_len >= state_bytes)
		return real(request, pid, address, data);
	memcpy(state, given->iov_base, given->iov_len);
	uint64_t in_use;
	memcpy(&in_use, state + IN_USE_OFFSET, sizeof in_use);
	in_use &= KNOWN_COMPONENTS;
	memcpy(state + IN_USE_OFFSET, &in_use, sizeof in_use);
	whole.iov_len = state_bytes;
	return real(request, pid, address, &whole);
}
