import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { type PythonEnvironment, pythonEnvironment, startPlatform, type TestPlatform } from '@holdfast/testing';
import { afterAll, beforeAll, describe, expect, it } from '@jest/globals';

const SCRIPT = fileURLToPath(new URL('sdk-python.e2e.py', import.meta.url));
const CHECKS = [...readFileSync(SCRIPT, 'utf8').matchAll(/^@check\("(.+)"\)$/gm)].map(([, name]) => name ?? '');

interface Finding {
  readonly check: string;
  readonly error: string | null;
}

let platform: TestPlatform;
beforeAll(async () => {
  platform = await startPlatform();
}, 240_000);
afterAll(async () => {
  await platform?.stop();
}, 60_000);

// 1.x speaks the older dialect (x-api-key, ?beta=true), 2.x the newer (bearer).
describe.each<[string, PythonEnvironment]>([
  ['1.13.0', 'anthropic-1'],
  ['2.12.0', 'anthropic-2'],
])('anthropic %s for Python, unmodified:', (version, environment) => {
  let installed: string;
  let findings: Finding[];
  beforeAll(async () => {
    const python = await pythonEnvironment(environment);
    const run = (...args: string[]) =>
      promisify(execFile)(python, ['-I', ...args], {
        env: { ANTHROPIC_BASE_URL: platform.apiUrl, ANTHROPIC_API_KEY: platform.apiKey },
        timeout: 120_000,
      });
    installed = (await run('-c', 'import anthropic; print(anthropic.__version__)')).stdout.trim();
    const { stdout } = await run(SCRIPT);
    findings = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Finding);
  }, 900_000);

  it('is what was installed', () => {
    expect(installed).toBe(version);
  });

  it.each(CHECKS)('%s', (check) => {
    expect(findings.filter((finding) => finding.check === check)).toEqual([{ check, error: null }]);
  });
});
