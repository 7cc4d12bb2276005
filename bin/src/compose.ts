import { join } from 'node:path';
import { writeCredentials } from './credentials.ts';
import { maintain } from './maintenance.ts';
import { bootstrap, migrate, prepareDatabase } from './postgres.ts';
import { derivedSecret, loadSettings, type Settings } from './settings.ts';
import { welcome } from './welcome.ts';

/** The volumes of docker-compose.yml that hold credentials; `platform` keeps the secret that they derive from. */
const CREDENTIALS = '/credentials';
const HELP = `usage: docker compose run --rm admin COMMAND
  sign-in     prints the API key and a one-time link into the dashboard
  log …       maintenance of the event log: check, rebuild, backup, restore, rebase, refill`;

function settingsOfContainers(): Settings {
  // What .env leaves open arrives as an empty variable; it must not hide what was made on the first start.
  const given = Object.fromEntries(Object.entries(process.env).filter(([, value]) => value !== ''));
  return {
    ...loadSettings({ ...given, HOLDFAST_ENV_FILE: join(CREDENTIALS, 'platform', 'env') }),
    addresses: { postgres: 'postgres:5432', nats: 'nats:4222' },
  };
}

/** The steps before the services of docker-compose.yml, and what an operator runs beside them. Returns the exit code. */
async function main([command, ...args]: readonly string[]): Promise<number> {
  const settings = settingsOfContainers();
  const env = { NODE_ENV: 'production' };
  const prepareSchema = async (): Promise<void> => {
    await prepareDatabase(settings);
    await migrate(settings, env);
  };
  switch (command) {
    case 'credentials':
      writeCredentials(settings, CREDENTIALS);
      return 0;
    case 'migrate':
      await prepareSchema();
      await bootstrap(settings, env);
      console.log('holdfast: the schema is up to date; docker compose run --rm admin sign-in prints the API key');
      return 0;
    case 'sign-in':
      console.log(await welcome(settings, { key: settings.apiKey, askAt: 'http://gateway-api:8080' }));
      console.log(
        `  Grafana     user admin, password ${derivedSecret(settings, 'grafana')}   (profile observability)\n`,
      );
      return 0;
    case 'log':
      // A backup is restored into a schema without events: before the first bootstrap.
      await prepareSchema();
      return maintain(settings, args);
    default:
      console.error(HELP);
      return 2;
  }
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error: unknown) => {
    console.error(`holdfast: ${error instanceof Error ? error.message : String(error)}`);
    process.exit(1);
  },
);
