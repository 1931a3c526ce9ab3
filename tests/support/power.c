/* What the power cut tests need from the kernel and Rust's standard library does not give.
 *
 *   power cut DIRECTORY          the ext4 file system there loses power: what is not on its disk, the
 *                                journal included, never gets there
 *   power write FILE sync|nosync appends 4 KiB records for ever, prints the number of each when it is
 *                                written (and synced)
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Not in every <linux/ext4.h>. */
#define SHUTDOWN _IOR('X', 125, uint32_t)
#define NO_LOG_FLUSH 2

static int cut(const char *directory)
{
    uint32_t how = NO_LOG_FLUSH;
    int file = open(directory, O_RDONLY);
    if (file < 0 || ioctl(file, SHUTDOWN, &how) != 0) {
        perror(directory);
        return 1;
    }
    return 0;
}

static int append(const char *path, int synced)
{
    char record[4096];
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    for (long number = 1; file >= 0; number++) {
        memset(record, 'a' + number % 26, sizeof record);
        if (write(file, record, sizeof record) != sizeof record)
            break;
        if (synced && fdatasync(file) != 0)
            break;
        printf("%ld\n", number);
        fflush(stdout);
    }
    perror(path);
    return 1;
}

int main(int count, char **words)
{
    if (count == 3 && strcmp(words[1], "cut") == 0)
        return cut(words[2]);
    if (count == 4 && strcmp(words[1], "write") == 0)
        return append(words[2], strcmp(words[3], "sync") == 0);
    fprintf(stderr, "power cut DIRECTORY | power write FILE sync|nosync\n");
    return 2;
}
