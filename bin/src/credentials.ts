import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { natsServerConfig } from '@holdfast/bus';
import { type Role, roleUrl } from './postgres.ts';
import { derivedSecret, natsPasswords, type Settings } from './settings.ts';

const SERVICES: Readonly<Record<keyof ReturnType<typeof natsPasswords>, Role>> = {
  'gateway-api': 'gateway',
  session: 'session',
  sandbox: 'sandbox',
};

/**
 * Writes what each container logs in with into a folder of its own below `dir`, and NATS' configuration. Derived from the
 * settings' secret, so repeating it changes nothing. A folder is a volume that its container alone mounts; the files are
 * readable for whatever user runs there.
 */
export function writeCredentials(settings: Settings, dir: string): void {
  const write = (consumer: string, files: Readonly<Record<string, string>>): void => {
    mkdirSync(join(dir, consumer), { recursive: true });
    for (const [name, text] of Object.entries(files)) writeFileSync(join(dir, consumer, name), text, { mode: 0o644 });
  };
  const passwords = natsPasswords(settings);
  write('postgres', { password: derivedSecret(settings, 'postgres') });
  write('nats', {
    'nats.conf': natsServerConfig({ host: '0.0.0.0', port: 4222, monitorPort: 8222, storeDir: '/data', passwords }),
  });
  for (const [service, role] of Object.entries(SERVICES)) {
    write(service, {
      'database-url': roleUrl(settings, role),
      'nats-password': passwords[service as keyof typeof passwords],
    });
  }
  write('sandbox', {
    'hub-secret': derivedSecret(settings, 'hub'),
    'checkpoint-key': derivedSecret(settings, 'checkpoints'),
  });
  write('grafana', {
    'admin-password': derivedSecret(settings, 'grafana'),
    'database-password': derivedSecret(settings, 'postgres-observer'),
  });
}
