import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** Installs packages of a Debian-like distribution. False where that may not be done; a failure is printed, not thrown. */
export async function installDebianPackages(...names: readonly string[]): Promise<boolean> {
  if (process.getuid?.() !== 0 || !existsSync('/usr/bin/apt-get')) return false;
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const apt = (...args: string[]) => run('apt-get', args, { env, timeout: 300_000, maxBuffer: 1 << 24 });
  try {
    await apt('update', '-qq');
    await apt('install', '-y', '--no-install-recommends', ...names);
    return true;
  } catch (error) {
    console.warn(`${names.join(' ')} could not be installed: ${String(error)}`);
    return false;
  }
}
