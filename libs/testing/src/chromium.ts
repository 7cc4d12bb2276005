import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { type Browser, chromium } from 'playwright-core';

const NAMES = ['chromium', 'chromium-browser', 'google-chrome-stable', 'google-chrome'];

/**
 * A headless Chromium: `CHROMIUM_PATH`, else one on PATH, else the one that playwright-core downloads for its version.
 * @throws when none can be had
 */
export async function launchChromium(): Promise<Browser> {
  const executablePath = process.env.CHROMIUM_PATH ?? onPath() ?? (await downloaded());
  // A container's root has no user namespace for Chromium's own sandbox.
  return chromium.launch({ executablePath, args: process.getuid?.() === 0 ? ['--no-sandbox'] : [] });
}

function onPath(): string | undefined {
  const folders = (process.env.PATH ?? '').split(delimiter);
  return NAMES.flatMap((name) => folders.map((folder) => join(folder, name))).find((path) => existsSync(path));
}

async function downloaded(): Promise<string> {
  if (!existsSync(chromium.executablePath())) {
    const args = ['playwright-core', 'install', '--with-deps', 'chromium'];
    await promisify(execFile)('npx', args, { timeout: 240_000 });
  }
  return chromium.executablePath();
}
