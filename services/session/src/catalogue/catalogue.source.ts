import { MIGRATIONS_TABLE, type Migration } from '@holdfast/event-store';
import { DataSource, type MigrationInterface, type QueryRunner } from 'typeorm';
import { catalogueEntities } from './catalogue.entities.ts';

/** The catalogue's data source. The log's hot path does not go through it. */
export function catalogueSource(
  url: string,
  applicationName: string,
  migrations: readonly Migration[] = [],
): DataSource {
  return new DataSource({
    type: 'postgres',
    url,
    applicationName: `holdfast-${applicationName}-catalogue`,
    entities: catalogueEntities,
    migrations: migrations.map(asTypeOrm),
    migrationsTableName: MIGRATIONS_TABLE,
    migrationsTransactionMode: 'each',
    synchronize: false,
    extra: { max: 4, connectionTimeoutMillis: 5_000, keepAlive: true },
  });
}

/** A plain SQL step as TypeORM's runner takes it. There is no way back: a mistake is mended by the next step. */
function asTypeOrm({ name, sql }: Migration): new () => MigrationInterface {
  return class implements MigrationInterface {
    readonly name = name;
    async up(runner: QueryRunner): Promise<void> {
      await runner.query(sql);
    }
    async down(): Promise<void> {}
  };
}
