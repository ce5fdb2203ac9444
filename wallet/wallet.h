/* wallet: the keeper of private keys. The door of the room wallet/.
 *
 * A wallet is a directory of key files, one key a file, named by its role:
 *
 *   operator   the stake key; signs transactions; need not be on the serving machine
 *   signer     the hot key of a node; signs receipts and batches
 *   house      the operator's house account; pays for API-key customers, signs their vouchers
 *   (a creator, a payer, a data owner has one key, named as they like; "default" when not named)
 *
 * The window is narrow. A key signs the six things below and nothing else, each handed over as its
 * own digest type from chain/types.h, which only chain/'s encoders produce; there is no function
 * that signs 32 loose bytes, and none that returns a key except wallet_key_export_v3, which
 * encrypts it first. All signatures are deterministic (RFC 6979) with s in the lower half of the
 * group order (EIP-2), and carry their recovery bit.
 *
 *   signed here                  by whom                       accepted by
 *   wallet_sign_receipt          operator's hot key            AttributionLedger, consumers
 *   wallet_sign_batch            operator's hot key            AttributionLedger
 *   wallet_sign_voucher          payer (house account)         Escrow
 *   wallet_sign_request          payer                         Escrow, nodes
 *   wallet_sign_manifest         creator                       AdapterRegistry, registries, nodes
 *   wallet_sign_transaction      any                           the chain
 *
 * At rest a key lies in guarded memory (guard pages around it, locked, kept out of core dumps, no
 * access rights); it becomes readable inside the signing function only. Secrets that people type
 * (passphrases, mnemonics) travel as `struct secret`, in memory of the same kind.
 *
 * Threads: functions on one `struct wallet` may be called from several threads at once, except
 * wallet_close, which must be the last call. Nobody waits for another: a wallet does not change
 * once open, and a key's page goes dark when the last of its simultaneous users is done. A
 * signature takes about 0.1 ms.
 * Functions on directories may run at once in several threads and processes: files are created
 * without replacing another, so of two that create the same name one fails with ERR_CONFLICT.
 *
 * The wallet never opens a socket and never logs a secret. */
#ifndef TRIBUTARY_WALLET_H
#define TRIBUTARY_WALLET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct err;
/* chain/types.h */
struct address;
struct signature;
struct receipt_digest;
struct batch_digest;
struct voucher_digest;
struct request_digest;
struct manifest_digest;
struct tx_digest;

enum {
    WALLET_NAME_BYTES = 32,          /* a key's name with its NUL: [a-z0-9][a-z0-9_-]{0,30} */
    WALLET_SECRET_MAX_BYTES = 16384, /* longest passphrase, mnemonic or v3 file that is read */
};

/* ---- secrets that people type --------------------------------------------------------------- */

struct secret; /* bytes in guarded memory, unreadable at rest; opaque */

/* Copies n bytes; the caller wipes its own. For tests and for secrets that are not (anvil's). */
struct secret *secret_from_bytes(const void *bytes, size_t n);

/* Reads fd to its end. what names it in errors ("standard input"). A final newline (LF or CR LF)
 * is dropped. ERR_TOO_LARGE over WALLET_SECRET_MAX_BYTES, ERR_INVALID when empty, ERR_IO. */
struct secret *secret_read_fd(int fd, const char *what, struct err *err);
struct secret *secret_read_file(const char *path, struct err *err);

/* Asks on the controlling terminal, without echo; confirm: asks twice and insists on equality.
 * ERR_INVALID without a terminal (the sentence names the alternatives), when empty or unequal. */
struct secret *secret_prompt(const char *prompt, bool confirm, struct err *err);

/* The passphrase of a wallet, from the first of: the file (NULL: not given), the file named by
 * the environment's TRIBUTARY_PASSPHRASE_FILE, the terminal. confirm as above, terminal only. */
struct secret *secret_passphrase(const char *file, const char *prompt, bool confirm,
                                 struct err *err);

/* Writes all bytes to fd: how a new mnemonic is shown, once. */
int secret_write_fd(const struct secret *s, int fd, struct err *err);
size_t secret_len(const struct secret *s);
void secret_free(struct secret *s); /* wipes; NULL is quiet */

/* ---- key files: create, import, list --------------------------------------------------------- */

/* The cost of a guess at the passphrase: Argon2id, one lane. Zero means the default, 3 passes over
 * 64 MiB (RFC 9106, section 4, second recommendation). Less is refused unless cheap_kdf_for_tests
 * is set. Files carry their own cost; opening one needs no options. */
struct wallet_key_options {
    uint32_t kdf_passes;     /* 1 to 16 */
    uint32_t kdf_memory_kib; /* 8 to 1,048,576 */
    bool cheap_kdf_for_tests;
    /* wallet_key_create: 12, 15, 18, 21 or 24; 0 means 24. */
    unsigned mnemonic_words;
    /* wallet_key_import, where the material is encrypted or derived (wallet_key_create derives the
     * key of a new mnemonic by them, too): */
    const struct secret *import_passphrase; /* of the v3 file or the mnemonic (BIP-39), or NULL */
    const char *derivation_path;            /* NULL: "m/44'/60'/0'/0/0" (BIP-44, Ethereum) */
};

struct wallet_entry { /* what a key file says without its passphrase */
    char name[WALLET_NAME_BYTES];
    uint8_t address[20]; /* checked against the key when the file is opened, till then a claim */
    uint64_t created_unix_s;
    char problem[192]; /* wallet_list: why the file can't be used, all above but the name being
                          zero then; "" when it can */
};

/* Could a key of this name be made? ERR_CONFLICT when there is one, ERR_INVALID for a bad name.
 * Said before anyone thinks up a passphrase; creation itself has the last word. */
int wallet_name_available(const char *dir, const char *name, struct err *err);

/* Makes a key and writes DIR/NAME.key (mode 0600; DIR is made with 0700).
 *
 * out  address       of the new key; may be NULL
 *      mnemonic      NULL: a key from the random generator, which only the file holds. Otherwise
 *                    the key is derived from a fresh mnemonic, handed over here, to be shown once
 *                    and freed; it is stored nowhere.
 * in   opt           NULL: defaults
 *
 * ERR_CONFLICT when NAME exists (nothing is overwritten), ERR_INVALID for a bad name, ERR_IO. */
int wallet_key_create(const char *dir, const char *name, struct address *address,
                      struct secret **mnemonic, const struct secret *passphrase,
                      const struct wallet_key_options *opt, struct err *err);

/* What existing keys come as, recognised by its shape. */
enum wallet_material {
    WALLET_MATERIAL_UNKNOWN,
    WALLET_MATERIAL_HEX,         /* 64 hexadecimal digits, 0x optional */
    WALLET_MATERIAL_MNEMONIC,    /* letters and white space: BIP-39, English */
    WALLET_MATERIAL_XPRV,        /* "xprv...": a BIP-32 node; only a master gets the default path */
    WALLET_MATERIAL_KEYSTORE_V3, /* "{...": Ethereum's JSON keystore; needs import_passphrase */
};
enum wallet_material wallet_material(const struct secret *material);

/* As wallet_key_create, from existing material. ERR_INVALID when it is not well-formed (an unknown
 * word is named by its position, nothing of the material is repeated); ERR_UNAUTHORIZED when
 * import_passphrase does not open the v3 file; ERR_UNSUPPORTED for other keystores, by name. */
int wallet_key_import(const char *dir, const char *name, struct address *address,
                      const struct secret *material, const struct secret *passphrase,
                      const struct wallet_key_options *opt, struct err *err);

/* Appends the key as keystore v3 JSON (scrypt n = 2^18, r = 8, p = 1), encrypted with
 * export_passphrase, for geth, MetaMask, ethers. */
int wallet_key_export_v3(const char *dir, const char *name, struct buf *json,
                         const struct secret *passphrase, const struct secret *export_passphrase,
                         struct err *err);

/* The header of one key file, checked for damage but not opened. ERR_NOT_FOUND names the file. */
int wallet_key_peek(const char *dir, const char *name, struct wallet_entry *out, struct err *err);

/* All key files of DIR by name, in *out [*n] (free() it). An absent DIR is an empty wallet. A file
 * that can't be used is listed with its problem. */
int wallet_list(const char *dir, struct wallet_entry **out, size_t *n, struct err *err);

/* ---- an opened wallet ------------------------------------------------------------------------ */

struct wallet; /* opaque */

/* Opens the named keys (NULL-terminated), or with names NULL all in DIR, with one passphrase.
 *
 * NULL with ERR_NOT_FOUND (no such file, or no key at all), ERR_FORBIDDEN (a file that group or
 * others may touch), ERR_CORRUPT (damaged: checksum, layout, bounds, another key's name),
 * ERR_UNAUTHORIZED (wrong passphrase, or altered on purpose), ERR_NO_MEMORY. */
struct wallet *wallet_open(const char *dir, const char *const *names,
                           const struct secret *passphrase, struct err *err);

/* A wallet that never touches a disk, from raw keys: for tests and for a development chain, whose
 * keys are public anyway. Copies the keys; the caller's array is its own affair. */
struct wallet_memory_key {
    const char *name;
    uint8_t key[32];
};
struct wallet *wallet_open_memory(const struct wallet_memory_key *keys, size_t n, struct err *err);

/* The same from a mnemonic: keys "0" to "n-1" at m/44'/60'/0'/0/i, which is how anvil, hardhat and
 * ganache make theirs ("test test test test test test test test test test test junk"). */
struct wallet *wallet_open_dev_mnemonic(const char *mnemonic, size_t n, struct err *err);

void wallet_close(struct wallet *w); /* wipes and unmaps every key; NULL is quiet */

bool wallet_has(const struct wallet *w, const char *name);
/* ERR_NOT_FOUND when the wallet holds no key of that name (here and in every function below). */
int wallet_key_address(const struct wallet *w, const char *name, struct address *out,
                       struct err *err);

/* ---- the window: what a key signs ------------------------------------------------------------ */

int wallet_sign_receipt(struct wallet *w, const char *name, struct signature *out,
                        const struct receipt_digest *digest, struct err *err);
int wallet_sign_batch(struct wallet *w, const char *name, struct signature *out,
                      const struct batch_digest *digest, struct err *err);
int wallet_sign_voucher(struct wallet *w, const char *name, struct signature *out,
                        const struct voucher_digest *digest, struct err *err);
int wallet_sign_request(struct wallet *w, const char *name, struct signature *out,
                        const struct request_digest *digest, struct err *err);
int wallet_sign_manifest(struct wallet *w, const char *name, struct signature *out,
                         const struct manifest_digest *digest, struct err *err);
int wallet_sign_transaction(struct wallet *w, const char *name, struct signature *out,
                            const struct tx_digest *digest, struct err *err);

/* ---- no secrets: who signed? ----------------------------------------------------------------- */

/* The address whose key made the signature. ERR_UNAUTHORIZED when no key can have made it (r or s
 * out of range, no such point), when s is in the upper half (malleable, EIP-2), or when the
 * address would be zero. Comparing it with the expected address is the caller's part. */
int wallet_recover_receipt(struct address *out, const struct signature *sig,
                           const struct receipt_digest *digest, struct err *err);
int wallet_recover_batch(struct address *out, const struct signature *sig,
                         const struct batch_digest *digest, struct err *err);
int wallet_recover_voucher(struct address *out, const struct signature *sig,
                           const struct voucher_digest *digest, struct err *err);
int wallet_recover_request(struct address *out, const struct signature *sig,
                           const struct request_digest *digest, struct err *err);
int wallet_recover_manifest(struct address *out, const struct signature *sig,
                            const struct manifest_digest *digest, struct err *err);
int wallet_recover_transaction(struct address *out, const struct signature *sig,
                               const struct tx_digest *digest, struct err *err);

#endif
