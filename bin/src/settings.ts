import { createHmac, randomBytes } from 'node:crypto';
import { chmodSync, copyFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, isAbsolute, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseEnv } from 'node:util';

/** The checkout. */
export const ROOT = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** What bin/up runs with: `.env`, over it the environment. */
export interface Settings {
  readonly values: Readonly<Record<string, string>>;
  readonly stateDir: string;
  readonly ports: Readonly<Record<'dashboard' | 'api' | 'postgres' | 'nats' | 'hub' | 'demoGateway', number>>;
  /** `host:port` of our own servers. */
  readonly addresses: Readonly<Record<'postgres' | 'nats', string>>;
  readonly demoGateway: boolean;
  readonly apiKey: string;
}

const secretText = (bytes: number): string => randomBytes(bytes).toString('base64url');

/** Creates `.env` from `.env.example` with fresh secrets; fills the ones that are empty. Returns its values. */
export function ensureEnvFile(file: string, example: string): Record<string, string> {
  if (!existsSync(file)) {
    copyFileSync(example, file);
    chmodSync(file, 0o600);
  }
  let text = readFileSync(file, 'utf8');
  const fresh: Record<string, string> = { HOLDFAST_API_KEY: `hf_${secretText(32)}`, HOLDFAST_SECRET: secretText(32) };
  for (const [name, value] of Object.entries(fresh)) {
    const known = (parseEnv(text) as Record<string, string>)[name];
    if (known !== undefined && known !== '') continue;
    const line = `${name}=${value}`;
    text = new RegExp(`^${name}=.*$`, 'm').test(text)
      ? text.replace(new RegExp(`^${name}=.*$`, 'm'), line)
      : `${text.trimEnd()}\n${line}\n`;
  }
  if (text !== readFileSync(file, 'utf8')) writeFileSync(file, text, { mode: 0o600 });
  chmodSync(file, 0o600);
  return parseEnv(text) as Record<string, string>;
}

/** Reads the settings. @throws Error that names every fault. */
export function loadSettings(environment: NodeJS.ProcessEnv = process.env): Settings {
  const fromFile = ensureEnvFile(environment.HOLDFAST_ENV_FILE ?? join(ROOT, '.env'), join(ROOT, '.env.example'));
  const values: Record<string, string> = { ...fromFile };
  for (const [name, value] of Object.entries(environment)) if (value !== undefined) values[name] = value;
  const faults: string[] = [];
  const port = (name: string, fallback: number): number => {
    const text = values[name] ?? '';
    const number = text === '' ? fallback : Number(text);
    if (!Number.isInteger(number) || number < 1 || number > 65_535)
      faults.push(`${name} must be a port from 1 to 65535`);
    return number;
  };
  const state = values.HOLDFAST_STATE_DIR ?? '';
  const ports = {
    dashboard: port('DASHBOARD_PORT', 3000),
    api: port('API_PORT', 8080),
    postgres: port('POSTGRES_PORT', 54_329),
    nats: port('NATS_PORT', 42_229),
    hub: port('HUB_PORT', 8081),
    demoGateway: port('DEMO_GATEWAY_PORT', 8090),
  };
  const settings: Settings = {
    values,
    stateDir: state === '' ? join(ROOT, '.holdfast') : isAbsolute(state) ? state : resolve(state),
    ports,
    addresses: { postgres: `127.0.0.1:${ports.postgres}`, nats: `127.0.0.1:${ports.nats}` },
    demoGateway: (values.LITELLM_GATEWAY_URL ?? '') === '',
    apiKey: values.HOLDFAST_API_KEY ?? '',
  };
  if (!/^hf_[A-Za-z0-9_-]{43}$/.test(settings.apiKey))
    faults.push('HOLDFAST_API_KEY must be hf_ and 43 characters of A-Z a-z 0-9 _ -');
  if (faults.length > 0) throw new Error(`the settings have faults:\n  ${faults.join('\n  ')}`);
  return settings;
}

/** The settings with such names that are not empty. */
export function namedValues(settings: Settings, pattern: RegExp): Record<string, string> {
  return Object.fromEntries(
    Object.entries(settings.values).filter(([name, value]) => pattern.test(name) && value !== ''),
  );
}

/** A password of its own for each role and user. */
export function derivedSecret(settings: Settings, name: string): string {
  return createHmac('sha256', settings.values.HOLDFAST_SECRET ?? '')
    .update(name)
    .digest('base64url');
}

/** Passwords of our own NATS server's users, one per service. */
export const natsPasswords = (settings: Settings) => ({
  'gateway-api': derivedSecret(settings, 'nats-gateway-api'),
  session: derivedSecret(settings, 'nats-session'),
  sandbox: derivedSecret(settings, 'nats-sandbox'),
});

/** How a service reaches NATS: ours, or the operator's at `NATS_URL`. */
export function natsLogin(settings: Settings, user: keyof ReturnType<typeof natsPasswords>): Record<string, string> {
  const given = settings.values.NATS_URL ?? '';
  return given === ''
    ? {
        NATS_URL: `nats://${settings.addresses.nats}`,
        NATS_USER: user,
        NATS_PASSWORD: natsPasswords(settings)[user],
      }
    : {
        NATS_URL: given,
        NATS_USER: settings.values.NATS_USER ?? '',
        NATS_PASSWORD: settings.values.NATS_PASSWORD ?? '',
      };
}

/** How many processes of a service run, 1 to 16. */
export function replicas(settings: Settings, service: string): number {
  const count = Number(settings.values[`${service.toUpperCase().replace(/-/g, '_')}_REPLICAS`] ?? '1');
  return Number.isInteger(count) && count >= 1 && count <= 16 ? count : 1;
}
