# Makes wallet/bip39_english.c from BIP-39's word list: see the head of what it prints.
BEGIN {
    print "/* bip39_english: the 2,048 words of BIP-39's English list, in its order, which is the"
    print " * alphabet's; the first four letters tell any two apart. Generated, and compared with the"
    print " * list by a test:"
    print " *"
    print " *   awk -f wallet/bip39_english.awk tests/vectors/trezor/bip39-english.txt \\"
    print " *       > wallet/bip39_english.c"
    print " *"
    print " * Source: trezor/python-mnemonic, src/mnemonic/wordlist/english.txt (MIT). */"
    print "#include \"wallet/mnemonic.h\""
    print ""
    print "/* clang-format off */"
    print "const char bip39_english[BIP39_WORDS][BIP39_WORD_BYTES] = {"
}
{
    item = "\"" $1 "\","
    if (length(line) + length(item) + 1 > 96) {
        print "    " line
        line = ""
    }
    line = line == "" ? item : line " " item
}
END {
    print "    " line
    print "};"
    print "/* clang-format on */"
}
