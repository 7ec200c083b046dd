/* The floor: what a client would take that does nothing at all with what it reads.
 *
 * floor HOST PORT USER PASSWORD: one connection, LOGIN, EXAMINE INBOX, all bodies by one FETCH, which
 * is as pipelined as IMAP can be. Literals are skipped without being looked at. Prints how many
 * messages and how many bytes of literals came. Ends with 1 on anything unexpected.
 */
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[1 << 20];
static size_t start, end;
static int sock;
static unsigned long long messages, bytes;

static void fail(const char *what)
{
	fprintf(stderr, "floor: %s\n", what);
	exit(1);
}

static void refill(void)
{
	if (start) {
		memmove(buffer, buffer + start, end - start);
		end -= start;
		start = 0;
	}
	if (end == sizeof buffer)
		fail("a line without end");
	ssize_t got = read(sock, buffer + end, sizeof buffer - end);
	if (got <= 0)
		fail("the server closed the connection");
	end += (size_t)got;
}

/* Return the next line, ended by a NUL in place of its LF; valid until the next call. */
static char *line(void)
{
	char *newline;
	size_t seen = 0;
	while (!(newline = memchr(buffer + start + seen, '\n', end - start - seen))) {
		seen = end - start;
		refill();
	}
	char *text = buffer + start;
	*newline = 0;
	start = (size_t)(newline - buffer) + 1;
	return text;
}

static void skip(unsigned long long size)
{
	for (;;) {
		size_t here = end - start;
		if (here >= size) {
			start += size;
			return;
		}
		size -= here;
		start = end = 0;
		ssize_t got = read(sock, buffer, sizeof buffer);
		if (got <= 0)
			fail("the server closed the connection in a body");
		end = (size_t)got;
	}
}

static void run(const char *tag, const char *command)
{
	size_t length = strlen(tag);
	if (dprintf(sock, "%s %s\r\n", tag, command) < 0)
		fail("the server takes no command");
	for (;;) {
		char *text = line();
		if (!strncmp(text, tag, length) && text[length] == ' ') {
			if (strncmp(text + length + 1, "OK", 2))
				fail(text);
			return;
		}
		char *brace = strrchr(text, '{');
		unsigned long long size;
		if (brace && sscanf(brace, "{%llu}\r", &size) == 1 && strchr(brace, '}')[1] == '\r') {
			messages++;
			bytes += size;
			skip(size);
		}
	}
}

int main(int count, char **words)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
	char login[1024];
	if (count != 5)
		fail("usage: floor HOST PORT USER PASSWORD");
	if (getaddrinfo(words[1], words[2], &hints, &found))
		fail("unknown host");
	sock = socket(found->ai_family, SOCK_STREAM, 0);
	if (sock < 0 || connect(sock, found->ai_addr, found->ai_addrlen))
		fail("can't connect");
	line();
	snprintf(login, sizeof login, "LOGIN \"%s\" \"%s\"", words[3], words[4]);
	run("a", login);
	run("b", "EXAMINE INBOX");
	run("c", "UID FETCH 1:* (UID BODY.PEEK[])");
	run("d", "LOGOUT");
	printf("%llu %llu\n", messages, bytes);
	return 0;
}
