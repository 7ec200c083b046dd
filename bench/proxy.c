/* Adds latency to TCP connections, or limits what flows, and keeps what clients said.
 *
 * proxy TARGET_PORT DELAY_MICROSECONDS BYTES_PER_SECOND [LOG_PREFIX]: listens on a free port of
 * 127.0.0.1, prints it, and connects each client to TARGET_PORT. Each direction takes the delay, so
 * the round trip gets twice as much; each direction of each connection lets so many bytes through,
 * 0: all that come. What a client sends is also written to LOG_PREFIX.<number of the connection>.
 *
 * Per direction, one thread reads into a queue and notes when each piece is due; another writes it
 * then. The queue holds 64 MB: 3 GB/s at 20 ms.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 256 * 1024, PIECES = 1024, HELD = 64 << 20 };

struct piece {
	struct timespec due;
	char *data;
	size_t size;
};

struct direction {
	int from, to, log;
	struct piece queue[PIECES];
	unsigned long put, taken;
	size_t held;
	pthread_mutex_t lock;
	pthread_cond_t changed;
};

static long delay_ns, bytes_per_second;

static struct timespec later(struct timespec from, long ns)
{
	from.tv_nsec += ns % 1000000000;
	from.tv_sec += ns / 1000000000 + from.tv_nsec / 1000000000;
	from.tv_nsec %= 1000000000;
	return from;
}

static struct timespec due_time(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return later(now, delay_ns);
}

/* Sleep as long as these bytes take, counted from when those before were through. */
static void pace(struct timespec *through, size_t size)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (now.tv_sec > through->tv_sec ||
	    (now.tv_sec == through->tv_sec && now.tv_nsec > through->tv_nsec))
		*through = now;
	*through = later(*through, (long)(size * 1e9 / (double)bytes_per_second));
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, through, NULL);
}

static void put(struct direction *d, char *data, size_t size)
{
	pthread_mutex_lock(&d->lock);
	while (d->put - d->taken == PIECES || d->held > HELD)
		pthread_cond_wait(&d->changed, &d->lock);
	d->queue[d->put++ % PIECES] = (struct piece){due_time(), data, size};
	d->held += size;
	pthread_cond_signal(&d->changed);
	pthread_mutex_unlock(&d->lock);
}

static void *reader(void *argument)
{
	struct direction *d = argument;
	char *data = malloc(PIECE);
	for (;;) {
		ssize_t got = read(d->from, data, PIECE);
		if (got <= 0) {
			free(data);
			put(d, NULL, 0);
			return NULL;
		}
		if (d->log >= 0 && write(d->log, data, (size_t)got) != got)
			perror("proxy: log");
		char *exact = malloc((size_t)got);
		memcpy(exact, data, (size_t)got);
		put(d, exact, (size_t)got);
	}
}

static void *writer(void *argument)
{
	struct direction *d = argument;
	int broken = 0;
	struct timespec through = {0, 0};
	for (;;) {
		pthread_mutex_lock(&d->lock);
		while (d->put == d->taken)
			pthread_cond_wait(&d->changed, &d->lock);
		struct piece p = d->queue[d->taken % PIECES];
		pthread_mutex_unlock(&d->lock);
		if (delay_ns)
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &p.due, NULL);
		if (bytes_per_second)
			pace(&through, p.size);
		for (size_t sent = 0; sent < p.size && !broken;) {
			ssize_t n = write(d->to, p.data + sent, p.size - sent);
			if (n <= 0) {
				broken = 1;
				shutdown(d->from, SHUT_RD);
			} else
				sent += (size_t)n;
		}
		int last = !p.data;
		free(p.data);
		pthread_mutex_lock(&d->lock);
		d->taken++;
		d->held -= p.size;
		pthread_cond_signal(&d->changed);
		pthread_mutex_unlock(&d->lock);
		if (last) {
			shutdown(d->to, SHUT_WR);
			return NULL;
		}
	}
}

static struct direction *start(int from, int to, int log, pthread_t *threads)
{
	struct direction *d = calloc(1, sizeof *d);
	*d = (struct direction){.from = from, .to = to, .log = log};
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->changed, NULL);
	pthread_create(&threads[0], NULL, reader, d);
	pthread_create(&threads[1], NULL, writer, d);
	return d;
}

struct pair {
	int client, server, log;
};

static void *serve(void *argument)
{
	struct pair p = *(struct pair *)argument;
	pthread_t threads[4];
	struct direction *up = start(p.client, p.server, p.log, threads);
	struct direction *down = start(p.server, p.client, -1, threads + 2);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	close(p.client);
	close(p.server);
	if (p.log >= 0)
		close(p.log);
	free(up);
	free(down);
	free(argument);
	return NULL;
}

int main(int count, char **words)
{
	int one = 1, connections = 0;
	struct sockaddr_in here = {.sin_family = AF_INET}, there;
	socklen_t length = sizeof here;
	if (count < 4) {
		fprintf(stderr,
			"usage: proxy TARGET_PORT DELAY_MICROSECONDS BYTES_PER_SECOND [LOG_PREFIX]\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	delay_ns = atol(words[2]) * 1000;
	bytes_per_second = atol(words[3]);
	here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	there = here;
	there.sin_port = htons((unsigned short)atoi(words[1]));
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(listener, (void *)&here, sizeof here) || listen(listener, 64) ||
	    getsockname(listener, (void *)&here, &length)) {
		perror("proxy");
		return 1;
	}
	printf("%d\n", ntohs(here.sin_port));
	fflush(stdout);
	for (;;) {
		struct pair *p = malloc(sizeof *p);
		*p = (struct pair){accept(listener, NULL, NULL), socket(AF_INET, SOCK_STREAM, 0), -1};
		if (p->client < 0 || connect(p->server, (void *)&there, sizeof there)) {
			close(p->client);
			close(p->server);
			free(p);
			continue;
		}
		setsockopt(p->client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		setsockopt(p->server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		if (count > 4) {
			char name[4096];
			snprintf(name, sizeof name, "%s.%d", words[4], connections++);
			p->log = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		}
		pthread_t thread;
		if (!pthread_create(&thread, NULL, serve, p))
			pthread_detach(thread);
	}
}
