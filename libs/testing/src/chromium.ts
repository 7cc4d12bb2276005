import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { type Browser, chromium } from 'playwright-core';
import { installDebianPackages } from './debian.ts';

const run = promisify(execFile);
const NAMES = ['chromium', 'chromium-browser', 'google-chrome-stable', 'google-chrome'];

/**
 * A headless Chromium: `CHROMIUM_PATH`, else one on PATH, else the distribution's package where it may be installed, else
 * the one that playwright-core downloads for its version.
 * @throws when none can be had
 */
export async function launchChromium(): Promise<Browser> {
  const executablePath = process.env.CHROMIUM_PATH ?? onPath() ?? (await packaged()) ?? (await downloaded());
  // A container's root has no user namespace for Chromium's own sandbox.
  return chromium.launch({ executablePath, args: process.getuid?.() === 0 ? ['--no-sandbox'] : [] });
}

function onPath(): string | undefined {
  const folders = (process.env.PATH ?? '').split(delimiter);
  return NAMES.flatMap((name) => folders.map((folder) => join(folder, name))).find((path) => existsSync(path));
}

/** Debian's own package; on Ubuntu `chromium` is a stub that needs snap, so only what then is on PATH counts. */
async function packaged(): Promise<string | undefined> {
  await installDebianPackages('chromium');
  return onPath();
}

async function downloaded(): Promise<string> {
  if (!existsSync(chromium.executablePath())) {
    const args = ['playwright-core', 'install', '--with-deps', 'chromium'];
    await run('npx', args, { timeout: 240_000 });
  }
  return chromium.executablePath();
}
