/**
 * Who may import whom (the architecture's layers), as data. A project is a folder with a package.json, or one of
 * {@link ROOT_PROJECTS}. What no rule allows is refused.
 */
export interface ProjectRule {
  /** Folder, or folder with `/*` for each of its folders that has no rule of its own. */
  readonly folder: string;
  /** Projects of the house that it may import, by the last part of `@holdfast/<name>`. */
  readonly libs: readonly string[];
  /** Of those, the ones that it may import types from and nothing else. */
  readonly typesOnly?: readonly string[];
  /** Packages that it may not import although it declares them; a trailing `*` matches any rest. */
  readonly refused: readonly string[];
  /** Whether it must also run in a browser: no built-in modules of Node. */
  readonly browser?: boolean;
}

const NEST = ['@nestjs/*', 'reflect-metadata'];
const KUBERNETES = ['@kubernetes/*'];
const PAGES = ['react', 'react-dom', 'next', 'next/*'];
const SERVICE_LIBS = ['contracts', 'event-store', 'bus', 'platform'];

export const PROJECT_RULES: readonly ProjectRule[] = [
  { folder: 'libs/contracts', libs: [], refused: ['*', '!zod'], browser: true },
  { folder: 'libs/event-store', libs: ['contracts'], refused: [...NEST, ...KUBERNETES, ...PAGES, '@nats-io/*'] },
  { folder: 'libs/bus', libs: ['contracts'], refused: [...NEST, ...KUBERNETES, ...PAGES, 'typeorm', 'pg', 'pg-*'] },
  { folder: 'libs/platform', libs: ['contracts', 'event-store', 'bus'], refused: [...KUBERNETES, ...PAGES] },
  { folder: 'libs/testing', libs: ['contracts', 'event-store', 'bus'], refused: [...NEST, ...KUBERNETES, ...PAGES] },
  { folder: 'services/sandbox', libs: SERVICE_LIBS, refused: PAGES },
  {
    folder: 'services/dashboard',
    libs: ['contracts'],
    refused: [...NEST, ...KUBERNETES, '@nats-io/*', 'typeorm', 'pg', 'pg-*'],
  },
  { folder: 'services/*', libs: SERVICE_LIBS, refused: [...KUBERNETES, ...PAGES] },
  {
    folder: 'harnesses/*',
    libs: ['contracts', 'runner'],
    typesOnly: ['contracts', 'runner'],
    refused: [...NEST, ...KUBERNETES, ...PAGES, '@nats-io/*', 'typeorm', 'pg', 'pg-*'],
  },
  { folder: 'bench', libs: [...SERVICE_LIBS, 'testing'], refused: [] },
  { folder: 'bin', libs: [...SERVICE_LIBS], refused: [] },
  // Beside the sandbox service the only one that talks to Kubernetes: it makes the cluster that the service is tested on.
  { folder: 'k8s/testbed', libs: [], refused: [...NEST, ...PAGES, '@nats-io/*', 'typeorm', 'pg', 'pg-*'] },
];

/** Tools without a package of their own: they use the root's, and each other's code by its path. */
export const ROOT_PROJECTS: readonly string[] = ['bin', 'k8s/testbed'];

/** Files whose code does no I/O by their role suffix: they import contracts, each other's kind, and types. */
export const PURE_FILE = /\.(?:decider|state|view|manifest|observe)\.ts$/;

/** Specs may use what tests anything: `testing`, any built-in module, and the root's development packages. */
export const SPEC_FILE = /(?:\.spec\.tsx?|\/test\/.*)$/;
