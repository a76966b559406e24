/* The beginning of the program that the compiler gets: everything it needs, without any header. */

typedef unsigned char byte;
typedef unsigned int word;
typedef unsigned long size;

static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

#define WRITE 1
#define EXIT 60
#define ELEMENTS(array) (sizeof(array) / sizeof((array)[0]))
#define ROTATE(x, n) (((x) << (n)) | ((x) >> (32 - (n))))
#define SWAP(type, a, b) do { type old_ = (a); (a) = (b); (b) = old_; } while (0)

enum kind { EMPTY, LEAF, PAIR };

struct node {
    enum kind kind;
    word value;
    struct node *left, *right;
};

static word mix(word sum, word value)
{
    return ROTATE(sum ^ value, 5) * 0x9e3779b1u;
}

