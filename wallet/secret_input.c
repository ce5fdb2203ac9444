/* secret_input: how a passphrase, a mnemonic or a key gets from a person into guarded memory.
 *
 * Problem. Three ways in are safe, the rest is not: a file of the owner's, a pipe, the keyboard
 * with its echo switched off. Arguments are not: `ps` shows them to everyone, the shell's history
 * keeps them. The environment is not either, so it only ever names a file.
 *
 * Idea. Bytes are read with read(2) straight into guarded memory (secmem.h); stdio would leave a
 * copy in its own buffer. What comes from a terminal is read key by key in raw mode, so that we
 * see Control-C ourselves and can give the terminal its echo back before the program ends:
 *
 *     Enter           done                   Backspace   removes one UTF-8 character
 *     Control-C, -D   cancelled              Control-U   starts again
 *
 * Signals that would end or stop the program are held back for as long as the echo is off.
 *
 * This is the one place below node/ that writes to a terminal: a question to the person at it,
 * never to stdout or stderr, where programs listen. */
#include "wallet/secmem.h"

#include "node/base/err.h"
#include "node/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

enum {
    KEY_CANCEL = 0x03, /* Control-C */
    KEY_END = 0x04,    /* Control-D */
    KEY_ERASE_BS = 0x08,
    KEY_KILL = 0x15, /* Control-U */
    KEY_ERASE_DEL = 0x7f,
};

/* A right-sized copy of the first n bytes of wide, which is freed. */
static struct secret *narrowed(struct secret *wide, size_t n)
{
    secret_seal_at(wide, n);
    const uint8_t *bytes = secret_reveal(wide);
    struct secret *s = secret_from_bytes(bytes, n);
    secret_conceal(wide);
    secret_free(wide);
    return s;
}

struct secret *secret_read_fd(int fd, const char *what, struct err *err)
{
    uint8_t *bytes;
    size_t n = 0;
    struct secret *wide = secret_create(WALLET_SECRET_MAX_BYTES + 1, &bytes);
    for (;;) {
        if (n > WALLET_SECRET_MAX_BYTES) {
            err_set(err, ERR_TOO_LARGE, "%s: a secret of more than %d bytes", what,
                    WALLET_SECRET_MAX_BYTES);
            goto fail;
        }
        ssize_t got = read(fd, bytes + n, WALLET_SECRET_MAX_BYTES + 1 - n);
        if (got == 0)
            break;
        if (got > 0) {
            n += (size_t)got;
        } else if (errno != EINTR) {
            err_set_errno(err, errno, "reading a secret from %s", what);
            goto fail;
        }
    }
    if (n > 0 && bytes[n - 1] == '\n')
        n -= n > 1 && bytes[n - 2] == '\r' ? 2 : 1;
    if (n == 0) {
        err_set(err, ERR_INVALID, "%s: empty, where a secret was expected", what);
        goto fail;
    }
    return narrowed(wide, n);

fail:
    secret_free(wide);
    return NULL;
}

struct secret *secret_read_file(const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        err_set_errno(err, errno, "opening %s", path);
        return NULL;
    }
    /* Only a warning: service managers hand out credentials with modes of their own. */
    struct stat st;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0077) != 0)
        log_warn("wallet", "%s holds a secret and has mode %03o: other users may read it", path,
                 (unsigned)(st.st_mode & 0777));
    struct secret *s = secret_read_fd(fd, path, err);
    close(fd);
    return s;
}

static void tty_say(int tty, const char *text)
{
    size_t n = strlen(text);
    while (n > 0) {
        ssize_t wrote = write(tty, text, n);
        if (wrote <= 0)
            return; /* the question is lost, the answer is still read */
        text += wrote;
        n -= (size_t)wrote;
    }
}

static size_t without_last_character(const uint8_t *bytes, size_t n)
{
    while (n > 0 && (bytes[n - 1] & 0xc0) == 0x80)
        n--;
    return n > 0 ? n - 1 : 0;
}

/* One line, the terminal being raw already. */
static struct secret *tty_line(int tty, struct err *err)
{
    uint8_t *bytes;
    size_t n = 0;
    struct secret *wide = secret_create(WALLET_SECRET_MAX_BYTES, &bytes);
    uint8_t *key = bytes + WALLET_SECRET_MAX_BYTES - 1; /* keys never touch the stack */
    for (;;) {
        ssize_t got = read(tty, key, 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0 || *key == KEY_CANCEL || *key == KEY_END) {
            err_set(err, ERR_CANCELLED, "nothing was entered");
            goto fail;
        }
        if (*key == '\n' || *key == '\r') {
            break;
        } else if (*key == KEY_KILL) {
            n = 0;
        } else if (*key == KEY_ERASE_BS || *key == KEY_ERASE_DEL) {
            n = without_last_character(bytes, n);
        } else if (n == WALLET_SECRET_MAX_BYTES - 1) {
            err_set(err, ERR_TOO_LARGE, "a secret of more than %d bytes",
                    WALLET_SECRET_MAX_BYTES - 1);
            goto fail;
        } else {
            bytes[n++] = *key;
        }
    }
    if (n == 0) {
        err_set(err, ERR_INVALID, "an empty secret was entered");
        goto fail;
    }
    return narrowed(wide, n);

fail:
    secret_free(wide);
    return NULL;
}

static struct secret *tty_ask(int tty, const char *prompt, struct err *err)
{
    struct termios before;
    if (tcgetattr(tty, &before) != 0) {
        err_set_errno(err, errno, "asking on the terminal");
        return NULL;
    }
    sigset_t held, old;
    sigemptyset(&held);
    static const int ends_or_stops[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP};
    for (size_t i = 0; i < sizeof ends_or_stops / sizeof *ends_or_stops; i++)
        sigaddset(&held, ends_or_stops[i]);
    pthread_sigmask(SIG_BLOCK, &held, &old);

    struct termios silent = before;
    silent.c_lflag &= ~(tcflag_t)(ECHO | ECHOE | ECHOK | ECHONL | ICANON | ISIG | IEXTEN);
    silent.c_cc[VMIN] = 1;
    silent.c_cc[VTIME] = 0;
    struct secret *s = NULL;
    if (tcsetattr(tty, TCSAFLUSH, &silent) != 0) {
        err_set_errno(err, errno, "switching off the terminal's echo");
    } else {
        tty_say(tty, prompt);
        s = tty_line(tty, err);
        tcsetattr(tty, TCSAFLUSH, &before);
        tty_say(tty, "\n");
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return s;
}

static bool secrets_equal(const struct secret *a, const struct secret *b)
{
    size_t n = secret_len(a);
    if (n != secret_len(b))
        return false;
    bool equal = sodium_memcmp(secret_reveal(a), secret_reveal(b), n) == 0;
    secret_conceal(a);
    secret_conceal(b);
    return equal;
}

struct secret *secret_prompt(const char *prompt, bool confirm, struct err *err)
{
    int tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
    if (tty < 0) {
        err_set(err, ERR_INVALID, "there is no terminal to ask on");
        return NULL;
    }
    struct secret *s = tty_ask(tty, prompt, err);
    if (s != NULL && confirm) {
        struct secret *again = tty_ask(tty, "Once more, to be sure: ", err);
        if (again == NULL || !secrets_equal(s, again)) {
            if (again != NULL)
                err_set(err, ERR_INVALID, "the two entries differ");
            secret_free(s);
            s = NULL;
        }
        secret_free(again);
    }
    close(tty);
    return s;
}

struct secret *secret_passphrase(const char *file, const char *prompt, bool confirm,
                                 struct err *err)
{
    if (file == NULL)
        file = getenv("TRIBUTARY_PASSPHRASE_FILE");
    if (file != NULL && *file != '\0')
        return secret_read_file(file, err);
    struct err why;
    struct secret *s = secret_prompt(prompt, confirm, &why);
    if (s == NULL)
        err_set(err, why.code,
                "no passphrase: %s (--passphrase-file FILE or TRIBUTARY_PASSPHRASE_FILE=FILE gives "
                "one without a terminal)",
                why.message);
    return s;
}
