import { execFile } from 'node:child_process';
import { statfs } from 'node:fs/promises';
import { promisify } from 'node:util';

const run = promisify(execFile);
/** Below so many free inodes a disk is full, whatever its bytes. */
const MIN_FREE_INODES = 20_000;
const MEASURE_MS = 60_000;

/** Bytes that folders take on disk together; Infinity when there is more than can be counted in a minute. */
export async function bytesIn(folders: readonly string[]): Promise<number> {
  const { stdout, killed } = await run('du', ['-s', '-c', '-B1', '--', ...folders], {
    timeout: MEASURE_MS,
    maxBuffer: 1 << 24,
  }).then(
    ({ stdout: text }) => ({ stdout: text, killed: false }),
    // Files that vanish while they are counted make du fail, with a count all the same.
    (error: { stdout?: string; killed?: boolean }) => ({ stdout: error.stdout ?? '', killed: error.killed === true }),
  );
  if (killed) return Number.POSITIVE_INFINITY;
  return Number.parseInt(stdout.trimEnd().split('\n').at(-1) ?? '', 10) || 0;
}

/** What is free on a folder's disk, in bytes, and why no tool may run: it is nearly full; null when not. */
export async function roomIn(
  folder: string,
  minFreeBytes: number,
): Promise<{ freeBytes: number; lack: string | null }> {
  const { bavail, bsize, files, ffree } = await statfs(folder);
  const freeBytes = bavail * bsize;
  if (freeBytes < minFreeBytes)
    return { freeBytes, lack: `Tools cannot run: less than ${minFreeBytes} bytes are free on the platform's disk.` };
  // Some file systems do not count inodes and say 0.
  if (files > 0 && ffree < MIN_FREE_INODES)
    return {
      freeBytes,
      lack: `Tools cannot run: the platform's disk has room for fewer than ${MIN_FREE_INODES} files.`,
    };
  return { freeBytes, lack: null };
}
