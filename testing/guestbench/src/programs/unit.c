/* Unit @ of the program. */

static struct node pool_@[32];
static int used_@;

static struct node *make_@(enum kind kind, word value, struct node *left, struct node *right)
{
    struct node *node = &pool_@[used_@++ % ELEMENTS(pool_@)];
    node->kind = kind;
    node->value = value + @u;
    node->left = left;
    node->right = right;
    return node;
}

static struct node *tree_@(int depth)
{
    if (depth == 0)
        return make_@(LEAF, (word)used_@ * 7u, 0, 0);
    struct node *left = tree_@(depth - 1);
    struct node *right = depth > 1 ? tree_@(depth - 2) : make_@(EMPTY, 1u, 0, 0);
    return make_@(PAIR, (word)depth, left, right);
}

static word walk_@(const struct node *node)
{
    switch (node->kind) {
    case EMPTY:
        return 1u;
    case LEAF:
        return mix(node->value, @u);
    case PAIR:
        return mix(walk_@(node->left), walk_@(node->right)) + node->value;
    default:
        return 0u;
    }
}

static void sort_@(word *numbers, int count)
{
    int i, j;
    for (i = 1; i < count; i++)
        for (j = i; j > 0 && numbers[j - 1] > numbers[j]; j--)
            SWAP(word, numbers[j - 1], numbers[j]);
}

static word text_@(const char *text)
{
    word sum = @u;
    while (*text) {
        byte letter = (byte)*text++;
        if (letter >= 'a' && letter <= 'z')
            letter -= 'a' - 'A';
        else if (letter == ' ')
            continue;
        sum = mix(sum, letter);
    }
    return sum;
}

static word unit_@(word sum)
{
    word numbers[24];
    double mean = 0.0;
    int i;
    for (i = 0; i < (int)ELEMENTS(numbers); i++)
        numbers[i] = sum = mix(sum, (word)i * 3u + @u);
    sort_@(numbers, (int)ELEMENTS(numbers));
    for (i = 0; i < (int)ELEMENTS(numbers); i++)
        mean += (double)(numbers[i] >> 8) / (double)ELEMENTS(numbers);
    used_@ = 0;
    sum = mix(sum, walk_@(tree_@(5)));
    sum = mix(sum, text_@("the quick brown fox jumps over unit @"));
    return mix(sum, numbers[3] ^ (word)(long)mean);
}

