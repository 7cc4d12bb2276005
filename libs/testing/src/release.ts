import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
const PARTS = ['libs', 'services', 'harnesses'];
const LEFT_OUT = new Set(['src', 'node_modules', 'fixtures']);

/** One place in a built file: the text there, which must be in it, and the text in its stead. */
export interface ReleaseEdit {
  readonly file: string;
  readonly from: string;
  readonly to: string;
}

/** Another release of the platform: what is built here, in a folder of its own, changed in some places. */
export interface Release {
  readonly dir: string;
  remove(): Promise<void>;
}

/** @throws Error when a place is not found; it must be built already */
export function releaseWith(edits: readonly ReleaseEdit[]): Release {
  const dir = mkdtempSync(join(tmpdir(), 'holdfast-release-'));
  const modules = join(dir, 'node_modules');
  // Packages from elsewhere are shared; ours are the copy's own.
  mkdirSync(join(modules, '@holdfast'), { recursive: true });
  for (const name of readdirSync(join(ROOT, 'node_modules')))
    if (name !== '@holdfast') symlinkSync(join(ROOT, 'node_modules', name), join(modules, name));
  for (const path of PARTS.flatMap((part) => readdirSync(join(ROOT, part)).map((name) => join(part, name)))) {
    const from = join(ROOT, path);
    if (!existsSync(join(from, 'dist'))) continue;
    cpSync(from, join(dir, path), { recursive: true, filter: (file) => !LEFT_OUT.has(basename(file)) });
    if (existsSync(join(from, 'node_modules')))
      symlinkSync(join(from, 'node_modules'), join(dir, path, 'node_modules'));
    const { name } = JSON.parse(readFileSync(join(from, 'package.json'), 'utf8')) as { name: string };
    symlinkSync(join(dir, path), join(modules, name));
  }
  for (const { file, from, to } of edits) {
    const path = join(dir, file);
    const text = readFileSync(path, 'utf8');
    if (!text.includes(from)) throw new Error(`${file} does not hold ${from}`);
    writeFileSync(path, text.replaceAll(from, to));
  }
  return { dir, remove: () => rm(dir, { recursive: true, force: true }) };
}
